// What was cut where.
import { unique, pair, percent, room, draw } from "./axes.js";
import { legend } from "./legend.js";
import * as Plot from "./plot.js";
import { inkOn, ramp, theme } from "./theme.js";

export function widths(rows, width) {
  const { ink, muted, paper } = theme();
  const runs = unique(rows, "run");
  const label = (row) => (runs.length > 1 ? `${row.row} · ${row.run}` : row.row);
  const kinds = unique(rows, "row").sort();
  const names = kinds.flatMap((kind) => runs.map((run) => (runs.length > 1 ? `${kind} · ${run}` : kind))).filter((name) => rows.some((row) => label(row) === name));
  const layers = [...new Set(rows.map((row) => row.layer))].sort((a, b) => (a === null) - (b === null) || a - b);
  const left = room(names.map((one) => pair(one)), Math.min(240, 0.45 * width));
  const each = (width - left - 18) / layers.length;
  const column = (row) => (row.layer === null ? "none" : String(row.layer));
  const color = (row) => ramp(1 - row.kept / row.size);
  const big = Math.max(...rows.map((row) => String(row.kept).length)) * 7 + 6;
  const every = Math.ceil(24 / each);
  const chart = draw(width, {
    height: 44 + 34 * names.length, marginLeft: left, marginTop: 8, marginBottom: 36, padding: 0.06,
    x: { type: "band", domain: layers.map((l) => (l === null ? "none" : String(l))), label: "layer →", labelArrow: "none", tickFormat: (l) => (l === "none" ? "–" : Number(l) % every ? "" : l), tickSize: 0 },
    y: { type: "band", domain: names, label: null, tickFormat: (one) => pair(one), tickSize: 0 },
    marks: [
      Plot.cell(rows, { x: column, y: label, fill: color, stroke: muted, strokeOpacity: 0.35, ariaLabel: (row) => `${row.row} ${row.layer}: ${row.kept} of ${row.size}` }),
      each >= big ? Plot.text(rows, { x: column, y: label, text: (row) => String(row.kept), fill: (row) => inkOn(color(row)), filter: (row) => !row.whole }) : null,
      Plot.dot(rows, { x: column, y: label, r: Math.min(4, each / 4), fill: ink, stroke: paper, filter: (row) => row.whole }),
      Plot.tip(rows, Plot.pointer({ x: column, y: label, fill: paper, stroke: theme().grid, title: (row) => `${row.row}${row.layer === null ? "" : `, layer ${row.layer}`}${runs.length > 1 ? `\n${row.run}` : ""}\n${row.kept.toLocaleString("en")} of ${row.size.toLocaleString("en")} stay (${percent(row.kept / row.size)})${row.whole ? "\nleft whole by knowledge analysis" : ""}` })),
    ],
  }, "Share of structures kept in every layer, by kind");
  const scale = [0, 0.25, 0.5, 0.75, 1].map((cut) => ({ label: cut === 0 ? "all kept" : `${100 * (1 - cut)}%${cut === 1 ? ": nothing" : ""}`, color: ramp(cut), mark: "box" }));
  return [legend([...scale, ...(rows.some((row) => row.whole) ? [{ label: "left whole (unprunable)", color: ink, mark: "dot", symbol: "circle" }] : [])], width), chart];
}
