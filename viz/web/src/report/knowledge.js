// How much worse the model is without a part of each node group: the paper's Figure 4.
import { unique, pair, percent, tick, signed, draw, gridY, style } from "./axes.js";
import { legend } from "./legend.js";
import * as Plot from "./plot.js";
import { theme } from "./theme.js";

export function knowledge(rows, width) {
  const { paper, grid, muted } = theme();
  const kinds = unique(rows, "kind");
  const look = style(kinds);
  const stacks = unique(rows, "stack");
  const layers = [...new Set(rows.map((row) => row.layer))].sort((a, b) => (a === null) - (b === null) || a - b);
  const column = (row) => (row.layer === null ? "none" : String(row.layer));
  const runs = unique(rows, "run");
  const panel = (row) => [runs.length > 1 ? row.run : "", stacks.length > 1 ? row.stack || "no layer" : ""].filter(Boolean).join(" · ");
  const panels = [...new Set(rows.map(panel))];
  const values = rows.map((row) => row.value);
  const top = Math.max(...values);
  const skewed = top > 40 * Math.max(1e-4, [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)]);
  const each = (width - 80) / layers.length;
  const every = Math.ceil(22 / each);
  // kinds beside each other within a layer
  const shift = (row) => (kinds.indexOf(row.kind) - (kinds.length - 1) / 2) * Math.min(9, each / (kinds.length + 1));
  const byKind = (make) => kinds.map((kind) => make(rows.filter((row) => row.kind === kind), kind));
  const chart = draw(width, {
    height: 60 + 190 * panels.length, marginLeft: 64, marginRight: panels.length > 1 ? 132 : 18,
    x: { type: "band", domain: layers.map((l) => (l === null ? "none" : String(l))), label: "layer →", labelArrow: "none", tickFormat: (l) => (l === "none" ? "–" : Number(l) % every ? "" : l) },
    y: { type: skewed ? "symlog" : "linear", constant: 0.05, label: "↑ growth of perplexity", labelArrow: "none", tickFormat: tick, ticks: 5, nice: true },
    fy: { domain: panels, label: null, tickFormat: (one) => pair(one, 17), axis: panels.length > 1 ? "right" : null },
    marks: [
      gridY(), Plot.ruleY([0], { stroke: muted }),
      ...byKind((mine, kind) => Plot.ruleX(mine, { x: column, y1: 0, y2: "value", fy: panel, dx: shift(mine[0]), stroke: look.color(kind), strokeWidth: Math.min(3, each / 5) })),
      ...byKind((mine, kind) => Plot.dot(mine, { x: column, y: "value", fy: panel, dx: shift(mine[0]), r: Math.min(5.5, 2 + each / 8), symbol: look.symbol(kind), stroke: look.color(kind), strokeWidth: 1.8, fill: (row) => (row.unprunable ? look.color(kind) : paper), ariaLabel: (row) => `${row.group} ${row.value}` })),
      Plot.tip(rows, Plot.pointerX({ x: column, y: "value", fy: panel, fill: paper, stroke: grid, title: (row) => `${row.group}\n${row.kind}: ${signed(row.value, percent(row.value))} perplexity${row.unprunable ? "\nunprunable" : ""}` })),
    ],
  }, "Growth of perplexity when one node group alone is pruned, by layer and kind");
  return [legend([...look.marked.map((one) => ({ ...one, mark: "ring" })), ...(rows.some((row) => row.unprunable) ? [{ label: "filled: unprunable", color: muted, mark: "dot", symbol: "circle" }] : [])], width), chart];
}
