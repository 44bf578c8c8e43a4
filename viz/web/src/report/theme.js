// Colours that colour-blind eyes tell apart (Okabe and Ito), made darker on white and lighter on black so that lines of
// all of them can be seen; and ramps of one hue, whose lightness alone tells the order.
const light = {
  ink: "#1b1f24", muted: "#57606a", grid: "#d0d7de", paper: "#ffffff", faint: "#8c959f",
  series: ["#0072b2", "#d55e00", "#009e73", "#b5508f", "#b07a00", "#2f8fc4", "#5a5a5a", "#7a5195"],
  ramp: ["#edf3f8", "#4f94cd", "#08306b"],
};
const dark = {
  ink: "#e6edf3", muted: "#9da7b3", grid: "#30363d", paper: "#0d1117", faint: "#6e7681",
  series: ["#56b4e9", "#ff8a3d", "#2fc79a", "#e69ac8", "#f0c442", "#8fd0ff", "#b4b4b4", "#c3a3e6"],
  ramp: ["#1a2530", "#2f79bd", "#b9deff"],
};
const media = matchMedia("(prefers-color-scheme: dark)");
let printing = false;

/** The colours of this moment: paper is always light. */
export const theme = () => (media.matches && !printing ? dark : light);

/** Call when the colours or the width of the paper change. */
export function onChange(draw) {
  media.addEventListener("change", () => draw());
  addEventListener("beforeprint", () => ((printing = true), draw()));
  addEventListener("afterprint", () => ((printing = false), draw()));
}

export const isPrinting = () => printing;

/** A colour of the ramp, from 0 to 1. */
export function ramp(share) {
  const stops = theme().ramp.map((one) => [1, 3, 5].map((i) => parseInt(one.slice(i, i + 2), 16)));
  const along = Math.min(1, Math.max(0, share)) * (stops.length - 1);
  const first = Math.min(Math.floor(along), stops.length - 2);
  const [a, b, x] = [stops[first], stops[first + 1], along - first];
  return `#${a.map((c, i) => Math.round(c + (b[i] - c) * x).toString(16).padStart(2, "0")).join("")}`;
}

/** Black or white, whichever is read better on a colour. */
export function inkOn(color) {
  const [r, g, b] = [1, 3, 5]
    .map((i) => parseInt(color.slice(i, i + 2), 16) / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  const luminance = 0.2126 * r + 0.7152 * g + 0.0722 * b;
  return (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) ? "#000000" : "#ffffff";
}

/** Strokes that differ where colours cannot be seen. */
export const dashes = ["none", "7 3", "2 3", "9 3 2 3", "12 4", "4 2", "1 4", "7 2 1 2 1 2"];
export const symbols = ["circle", "square", "triangle", "diamond", "star", "wye", "square2", "cross"];
