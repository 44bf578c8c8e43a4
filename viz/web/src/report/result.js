// Perplexity before, cut and recovered.
import { unique, pair, room, several, draw, gridX, far, sparse } from "./axes.js";
import { legend } from "./legend.js";
import * as Plot from "./plot.js";
import { symbols, theme } from "./theme.js";

export function levels(rows, width) {
  const { series, muted } = theme();
  const stages = ["before", "cut", "recovered"];
  const colors = { before: series[0], cut: series[1], recovered: series[2] };
  const label = (row) => (several(rows) ? `${row.source} · ${row.run}` : row.source);
  const all = [...new Set([...rows].sort((a, b) => unique(rows, "source").indexOf(a.source) - unique(rows, "source").indexOf(b.source)).map(label))];
  const log = far(rows.map((row) => row.value), 12);
  const left = room(all.map((one) => pair(one)), Math.min(240, 0.45 * width));
  const ends = all.map((name) => {
    const values = rows.filter((row) => label(row) === name).map((row) => row.value);
    return { name, low: Math.min(...values), high: Math.max(...values) };
  });
  const place = { before: 0, cut: -1, recovered: 1 };
  const chart = draw(width, {
    height: 46 + 56 * all.length, marginLeft: left, marginRight: 34,
    x: { type: log ? "log" : "linear", label: "perplexity →", labelArrow: "none", nice: !log, insetLeft: 26, insetRight: 26, ticks: Math.max(3, Math.min(7, width / 90)), tickFormat: log ? sparse(rows.map((row) => row.value), width - left - 86) : "~s" },
    y: { domain: all, label: null, tickFormat: (one) => pair(one) },
    marks: [
      gridX(),
      Plot.ruleY(ends, { y: "name", x1: "low", x2: "high", stroke: muted, strokeWidth: 1.5 }),
      Plot.dot(rows, { x: "value", y: label, fill: (row) => colors[row.stage], r: 6.5, symbol: (row) => symbols[stages.indexOf(row.stage)], ariaLabel: (row) => `${row.stage} ${row.value}` }),
      ...stages.map((stage) => Plot.text(rows.filter((row) => row.stage === stage), {
        x: "value", y: label, text: (row) => row.value.toPrecision(4).replace(/e\+?/, "e"), dy: place[stage] > 0 ? 17 : -15, fill: "currentColor",
        filter: (row) => place[stage] || !near(rows, row, label, log, 52 / Math.max(width - 260, 52)),
      })),
      Plot.tip(rows, Plot.pointer({ x: "value", y: label, title: (row) => `${row.source}\n${several(rows) ? `${row.run}\n` : ""}${row.stage}: perplexity ${row.value.toPrecision(5)}`, fill: theme().paper, stroke: theme().grid })),
    ],
    symbol: { legend: false },
  }, "Perplexity by source before pruning, after the cut and after recovery");
  return [legend(stages.map((stage, i) => ({ label: stage, color: colors[stage], mark: "dot", symbol: symbols[i] })), width), chart];
}

/** Whether the cut's number would stand on this one's. */
function near(rows, row, label, log, least) {
  const all = rows.map((one) => (log ? Math.log(one.value) : one.value));
  const span = Math.max(...all) - Math.min(...all) || 1;
  const at = (one) => (log ? Math.log(one.value) : one.value);
  return rows.some((one) => one.stage === "cut" && label(one) === label(row) && Math.abs(at(one) - at(row)) / span < least);
}
