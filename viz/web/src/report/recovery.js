// What came back, and what it was learnt from.
import { unique, pair, percent, tick, signed, several, draw, gridY, steps, style } from "./axes.js";
import { legend } from "./legend.js";
import * as Plot from "./plot.js";
import { theme } from "./theme.js";

export function degradation(rows, width) {
  const { paper, grid, muted } = theme();
  const compared = several(rows); // then a panel for each source, and a colour for each run
  const by = compared ? "run" : "source";
  const names = unique(rows, by);
  const panels = compared ? unique(rows, "source") : [""];
  const panel = (row) => (compared ? row.source : "");
  const look = style(names);
  const one = (name) => rows.filter((row) => row[by] === name);
  const chart = draw(width, {
    height: compared ? 60 + 150 * panels.length : 260, marginRight: compared ? 132 : 18,
    x: steps, y: { label: null, nice: true, ticks: compared ? 4 : 5, tickFormat: (y) => signed(y, String(+y.toPrecision(3))) },
    fy: { domain: panels, label: null, axis: compared ? "right" : null, tickFormat: (one) => pair(one, 17), padding: 0.1 },
    marks: [
      compared ? Plot.frame({ stroke: grid }) : null,
      gridY(compared ? 4 : 5), Plot.ruleY([0], { stroke: muted, strokeWidth: 1.5 }),
      ...names.flatMap((name) => [
        Plot.line(one(name), { x: "at", y: "value", fy: panel, z: "source", stroke: look.color(name), strokeDasharray: look.dash(name), strokeWidth: 2.2 }),
        Plot.dot(one(name), { x: "at", y: "value", fy: panel, fill: look.color(name), symbol: look.symbol(name), r: 4 }),
      ]),
      Plot.tip(rows, Plot.pointer({ x: "at", y: "value", fy: panel, fill: paper, stroke: grid, title: (row) => `${row.source}\n${compared ? `${row.run}\n` : ""}round ${row.round}, step ${row.at}\n${signed(row.value, row.value.toFixed(3))} nats a token` })),
    ],
  }, "Validation loss above the full model's by source, over optimiser steps");
  return [legend(look.marked, width), chart];
}

export function sampling(rows, width) {
  const { paper, grid } = theme();
  const sources = unique(rows, "source");
  const look = style(sources);
  const runs = unique(rows, "run");
  const rounds = [...new Set(rows.map((row) => row.round))].sort((a, b) => a - b);
  const chart = draw(width, {
    height: runs.length > 1 ? 60 + 130 * runs.length : 260, marginRight: runs.length > 1 ? 132 : 18,
    x: { type: "band", domain: rounds, label: "round →", labelArrow: "none", padding: 0.15 },
    y: { domain: [0, 1], label: null, tickFormat: tick, ticks: 5 },
    fy: { domain: runs, label: null, axis: runs.length > 1 ? "right" : null, tickFormat: (one) => pair(one, 17) },
    marks: [
      gridY(),
      Plot.barY(rows, Plot.stackY({ order: sources, x: "round", y: "value", fy: "run", z: "source", fill: (row) => look.color(row.source), stroke: paper, strokeWidth: 1, tip: { fill: paper, stroke: grid, format: { x: false, y: false, fy: false, z: false, fill: false } }, title: (row) => `round ${row.round}: ${percent(row.value)} from ${row.source}` })),
    ],
  }, "Share of every source in what each round trained on");
  return [legend(look.items.map((item) => ({ ...item, mark: "box" })), width), chart];
}
