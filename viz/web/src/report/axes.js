// What all charts have in common: the frame that they are drawn in, grids, short names, the look of each name.
import * as Plot from "./plot.js";
import { dashes, symbols, theme } from "./theme.js";

export const unique = (rows, name) => [...new Set(rows.map((row) => row[name]))];
/** A name without its middle: runs and files often differ only at one of their ends. */
export const short = (text, most = 26) => (text.length > most ? `${text.slice(0, Math.ceil(most / 2) - 1)}…${text.slice(-Math.floor(most / 2))}` : text);
/** A name of two, each of them shortened. */
export const pair = (text, most = 30) => text.split(" · ").map((one, _, all) => short(one, Math.floor(most / all.length))).join(" · ");
export const percent = (x) => `${(100 * x).toFixed(x && Math.abs(x) < 0.0995 ? 1 : 0)}%`;
export const tick = (x) => `${+(100 * x).toPrecision(3)}%`.replace("-", "−");
export const signed = (x, text) => (x > 0 ? `+${text}` : text.replace("-", "−"));
/** Room that the longest of some labels takes, in pixels. */
export const room = (labels, most = 190) => Math.min(most, 16 + 7 * Math.max(0, ...labels.map((one) => String(one).length)));
export const several = (rows) => unique(rows, "run").length > 1;

export function draw(width, options, description) {
  const { ink, paper, grid } = theme();
  const made = Plot.plot({
    width, marginLeft: 56, marginRight: 18, marginBottom: 38, marginTop: 26, ...options,
    style: { fontSize: "12px", fontFamily: "system-ui, Helvetica, Arial, sans-serif", color: ink, background: "none", overflow: "visible" },
    ariaDescription: description,
  });
  made.style.setProperty("--plot-background", paper);
  made.setAttribute("color", ink);
  made.setAttribute("data-grid", grid);
  return made;
}

export const gridY = (ticks = 5) => Plot.gridY({ ticks, stroke: theme().grid, strokeOpacity: 0.8 });
export const gridX = () => Plot.gridX({ stroke: theme().grid, strokeOpacity: 0.8 });
export const steps = { label: "optimiser step →", nice: true, labelAnchor: "right", labelArrow: "none" };
/** Whether a logarithm shows more: all above zero, and far apart. */
export const far = (values, times) => values.every((v) => v > 0) && Math.max(...values) / Math.min(...values) > times;

/** Colour, stroke and mark of each name, by its place among all of them. */
export const style = (names) => {
  const { series } = theme();
  const at = (name) => names.indexOf(name);
  return {
    color: (name) => series[at(name) % series.length],
    dash: (name) => dashes[at(name) % dashes.length],
    symbol: (name) => symbols[at(name) % symbols.length],
    items: names.map((name, i) => ({ label: name, color: series[i % series.length], dash: dashes[i % dashes.length] })),
    marked: names.map((name, i) => ({ label: name, color: series[i % series.length], dash: dashes[i % dashes.length], symbol: symbols[i % symbols.length] })),
  };
};

/** Labels of a logarithmic axis: as many of a decade as there is room for. */
export function sparse(values, width) {
  const decade = width / Math.max(0.1, Math.log10(Math.max(...values) / Math.min(...values)));
  const shown = decade > 400 ? [1, 2, 3, 4, 5, 7] : decade > 130 ? [1, 2, 5] : [1];
  return (x) => (shown.includes(Math.round(x / 10 ** Math.floor(Math.log10(x) + 1e-9))) ? String(+x.toPrecision(3)) : "");
}
