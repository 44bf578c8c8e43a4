// Charts as SVG and PNG, tables and the data of charts as comma-separated values.
import { svg } from "./dom.js";
import { theme } from "./theme.js";

const FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif";
const MARGIN = 16;
const SCALE = 2; // of a PNG, so that it is sharp on paper

function download(content, type, name) {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name.replace(/[^\w.-]+/g, "-");
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

/** One picture of all that a figure shows: title, legend and chart under each other, on the paper's colour. */
export function picture(figure) {
  const parts = [...figure.querySelectorAll("svg")];
  const size = (one) => ["width", "height"].map((name) => Number(one.getAttribute(name)));
  const width = Math.max(...parts.map((one) => size(one)[0])) + 2 * MARGIN;
  let y = 34;
  const placed = parts.map((one) => {
    const copy = one.cloneNode(true);
    copy.setAttribute("x", MARGIN);
    copy.setAttribute("y", y);
    copy.setAttribute("overflow", "visible");
    y += size(one)[1];
    return copy;
  });
  const { ink, paper } = theme();
  const height = y + MARGIN;
  const title = svg("text", { x: MARGIN, y: 22, "font-size": 14, "font-weight": 600, fill: ink });
  title.textContent = figure.querySelector("h3").textContent;
  return svg(
    "svg",
    { xmlns: "http://www.w3.org/2000/svg", width, height, viewBox: `0 0 ${width} ${height}`, "font-family": FONT, color: ink },
    svg("rect", { width, height, fill: paper }), title, ...placed,
  );
}

export const saveSvg = (figure, name) =>
  download(new XMLSerializer().serializeToString(picture(figure)), "image/svg+xml", `${name}.svg`);

export async function savePng(figure, name) {
  const drawn = picture(figure);
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(new XMLSerializer().serializeToString(drawn))}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = ["width", "height"].map((one) => Math.ceil(SCALE * Number(drawn.getAttribute(one))));
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  canvas.toBlob((blob) => download(blob, "image/png", `${name}.png`), "image/png");
}

const quoted = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);

export const saveCsv = (columns, rows, name) =>
  download([columns, ...rows].map((row) => row.map((one) => quoted(String(one ?? ""))).join(",")).join("\r\n") + "\r\n", "text/csv", `${name}.csv`);

/** The rows behind a chart. */
export function saveData(rows, name) {
  const columns = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  saveCsv(columns, rows.map((row) => columns.map((one) => row[one])), name);
}
