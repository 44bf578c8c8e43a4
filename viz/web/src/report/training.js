// Loss, and structures that fall to zero, over optimiser steps.
import { unique, draw, gridY, steps, far, style } from "./axes.js";
import { legend } from "./legend.js";
import * as Plot from "./plot.js";
import { theme } from "./theme.js";

/** Upright lines where periods or rounds begin, with their numbers above. */
function begins(marks, width, span) {
  const { muted } = theme();
  if (new Set(marks.map((one) => one.run)).size > 1) return []; // those of several runs would be a fence
  let last = -Infinity;
  const named = marks.filter((one) => {
    const x = (one.at / Math.max(span, 1)) * (width - 74);
    if (x - last < 58) return false;
    last = x;
    return true;
  });
  return [
    Plot.ruleX(marks, { x: "at", stroke: muted, strokeDasharray: "2 3" }),
    Plot.text(named, { x: "at", frameAnchor: "top", text: "name", dy: -14, dx: 3, textAnchor: "start", fill: muted, fontSize: 11 }),
  ];
}

export function loss(rows, width, { marks = [] }) {
  const { paper, grid } = theme();
  const runs = unique(rows, "run");
  const look = style(runs);
  const span = Math.max(...rows.map((row) => row.at));
  const several_ = runs.length > 1;
  const chart = draw(width, {
    height: 260, x: { ...steps, domain: [0, span] }, y: { label: null, nice: true, grid: false, ticks: 5, type: far(rows.map((row) => row.loss), 30) ? "log" : "linear" },
    marks: [
      gridY(), ...begins(marks, width, span),
      ...runs.flatMap((run) => {
        const mine = rows.filter((row) => row.run === run);
        return [
          Plot.line(mine, { x: "at", y: "loss", stroke: look.color(run), strokeOpacity: several_ ? 0.2 : 0.38, strokeWidth: 1 }),
          Plot.line(mine, { x: "at", y: "mean", stroke: look.color(run), strokeWidth: 2.4, strokeDasharray: look.dash(run) }),
        ];
      }),
      Plot.ruleX(rows, Plot.pointerX({ x: "at", stroke: grid })),
      Plot.tip(rows, Plot.pointerX({ x: "at", y: "mean", fill: paper, stroke: grid, title: (row) => `${several_ ? `${row.run}\n` : ""}step ${row.at}\nloss ${row.loss.toFixed(3)}\nrunning mean ${row.mean.toFixed(3)}` })),
    ],
  }, "Training loss over optimiser steps");
  const items = several_ ? look.items : [{ label: "running mean", color: look.color(runs[0]), width: 2.6 }, { label: "loss of a step (nats a token)", color: `${look.color(runs[0])}80`, width: 1 }];
  return [legend(items, width), chart];
}

export function fading(rows, width, { marks = [] }) {
  const { paper, grid } = theme();
  const runs = unique(rows, "run");
  const look = style(runs);
  const span = Math.max(...rows.map((row) => row.at));
  const start = runs.map((run) => ({ run, at: 0, zero: 0, fading: 0 }));
  const all = [...start, ...rows];
  const zero = look.color(runs[0]), fades = theme().series[1];
  const one = runs.length === 1;
  const chart = draw(width, {
    height: 260, marginLeft: 64, x: { ...steps, domain: [0, span] }, y: { label: null, nice: true, ticks: 5, tickFormat: "~s" },
    marks: [
      gridY(),
      ...(one
        ? [
            Plot.areaY(all, { x: "at", y: "zero", fill: zero, curve: "step-before" }),
            Plot.areaY(all, { x: "at", y1: "zero", y2: (row) => row.zero + row.fading, fill: fades, fillOpacity: 0.55, curve: "step-before" }),
          ]
        : runs.map((run) => Plot.line(all.filter((row) => row.run === run), { x: "at", y: "zero", stroke: look.color(run), strokeWidth: 2.4, strokeDasharray: look.dash(run), curve: "step-before" }))),
      ...begins(marks, width, span),
      Plot.ruleY([0], { stroke: theme().muted }),
      Plot.tip(rows, Plot.pointerX({ x: "at", y: (row) => row.zero + (one ? row.fading : 0), fill: paper, stroke: grid, title: (row) => `${one ? "" : `${row.run}\n`}after step ${row.at}\n${row.zero.toLocaleString("en")} structures are zero\n${row.fading.toLocaleString("en")} fade` })),
    ],
  }, "Structures that are zero or fading over optimiser steps");
  return [legend(one ? [{ label: "exactly zero", color: zero, mark: "box" }, { label: "fading", color: fades, mark: "box", opacity: 0.55 }] : look.items, width), chart];
}
