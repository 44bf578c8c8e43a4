// One function for each chart: rows in, a legend and a picture out. All are SVG by Observable Plot.
import * as Plot from "./plot.js";
import { legend } from "./legend.js";
import { dashes, inkOn, ramp, symbols, theme } from "./theme.js";

const unique = (rows, name) => [...new Set(rows.map((row) => row[name]))];
/** A name without its middle: runs and files often differ only at one of their ends. */
const short = (text, most = 26) => (text.length > most ? `${text.slice(0, Math.ceil(most / 2) - 1)}…${text.slice(-Math.floor(most / 2))}` : text);
/** A name of two, each of them shortened. */
const pair = (text, most = 30) => text.split(" · ").map((one, _, all) => short(one, Math.floor(most / all.length))).join(" · ");
const percent = (x) => `${(100 * x).toFixed(x && Math.abs(x) < 0.0995 ? 1 : 0)}%`;
const tick = (x) => `${+(100 * x).toPrecision(3)}%`.replace("-", "−");
const signed = (x, text) => (x > 0 ? `+${text}` : text.replace("-", "−"));
/** Room that the longest of some labels takes, in pixels. */
const room = (labels, most = 190) => Math.min(most, 16 + 7 * Math.max(0, ...labels.map((one) => String(one).length)));
const several = (rows) => unique(rows, "run").length > 1;

function draw(width, options, description) {
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

const gridY = (ticks = 5) => Plot.gridY({ ticks, stroke: theme().grid, strokeOpacity: 0.8 });
const gridX = () => Plot.gridX({ stroke: theme().grid, strokeOpacity: 0.8 });
const steps = { label: "optimiser step →", nice: true, labelAnchor: "right", labelArrow: "none" };
/** Whether a logarithm shows more: all above zero, and far apart. */
const far = (values, times) => values.every((v) => v > 0) && Math.max(...values) / Math.min(...values) > times;

/** Colour, stroke and mark of each name, by its place among all of them. */
const style = (names) => {
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

// -- before, cut, recovered ------------------------------------------------------------------------------------

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

/** Labels of a logarithmic axis: as many of a decade as there is room for. */
function sparse(values, width) {
  const decade = width / Math.max(0.1, Math.log10(Math.max(...values) / Math.min(...values)));
  const shown = decade > 400 ? [1, 2, 3, 4, 5, 7] : decade > 130 ? [1, 2, 5] : [1];
  return (x) => (shown.includes(Math.round(x / 10 ** Math.floor(Math.log10(x) + 1e-9))) ? String(+x.toPrecision(3)) : "");
}

/** Whether the cut's number would stand on this one's. */
function near(rows, row, label, log, least) {
  const all = rows.map((one) => (log ? Math.log(one.value) : one.value));
  const span = Math.max(...all) - Math.min(...all) || 1;
  const at = (one) => (log ? Math.log(one.value) : one.value);
  return rows.some((one) => one.stage === "cut" && label(one) === label(row) && Math.abs(at(one) - at(row)) / span < least);
}

// -- where it was cut ------------------------------------------------------------------------------------------

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

// -- knowledge -------------------------------------------------------------------------------------------------

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

// -- pruning ---------------------------------------------------------------------------------------------------

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

export function saliency(rows, width) {
  const { series, paper, grid } = theme();
  const colors = { picked: series[1], stays: series[0] };
  const runs = unique(rows, "run");
  const panel = (row) => [runs.length > 1 ? row.run : "", row.kind].filter(Boolean).join(" · ");
  const panels = [...new Set(rows.map(panel))].sort();
  const numbers = [...new Set(rows.map((row) => row.number))].sort((a, b) => a - b);
  const log = rows.every((row) => row.q[0] > 0);
  const [low, high] = [Math.min(...rows.map((row) => row.q[0])), Math.max(...rows.map((row) => row.q[4]))].map((x) => (log ? Math.log10(x) : x));
  const powers = [];
  for (let one = Math.floor(low); log && one <= Math.ceil(high); one += Math.ceil((high - low) / 6) || 1) powers.push(10 ** one);
  const ticks = log ? powers : 4;
  const each = (width - 64 - 132) / numbers.length;
  const half = Math.max(2, Math.min(11, each / 5));
  const shift = { picked: -half - 1, stays: half + 1 };
  const words = unique(rows, "word");
  const name = (n) => `${words.length > 1 ? "choice" : words[0]} ${n}`;
  const plain = each < 56;
  const by = (make) => ["picked", "stays"].flatMap((what) => make(rows.filter((row) => row.what === what), colors[what], shift[what]));
  const chart = draw(width, {
    height: 60 + 150 * panels.length, marginLeft: 64, marginRight: 132,
    x: { type: "band", domain: numbers, label: plain ? `${words.length > 1 ? "choice" : words[0]} →` : null, labelArrow: "none", tickFormat: (n) => (plain ? String(n) : name(n)) },
    y: { type: log ? "log" : "linear", label: "↑ saliency", labelArrow: "none", nice: true, ticks, tickFormat: (y) => (log ? y.toExponential(0).replace("-", "−") : String(+y.toPrecision(2))) },
    fy: { domain: panels, label: null, tickFormat: (one) => pair(one, 17), padding: 0.12 },
    marks: [
      Plot.frame({ stroke: grid }), gridY(ticks),
      ...by((mine, color, dx) => [
        Plot.ruleX(mine, { x: "number", y1: (row) => row.q[0], y2: (row) => row.q[4], fy: panel, dx, stroke: color, strokeWidth: 1.4 }),
        Plot.ruleX(mine, { x: "number", y1: (row) => row.q[1], y2: (row) => row.q[3], fy: panel, dx, stroke: color, strokeOpacity: 0.4, strokeWidth: 2 * half - 1 }),
        Plot.tickY(mine, { x: "number", y: (row) => row.q[2], fy: panel, dx, stroke: color, strokeWidth: 2.4, insetLeft: (each * 0.9) / 2 - half, insetRight: (each * 0.9) / 2 - half }),
      ]),
      Plot.tip(rows, Plot.pointerX({ x: "number", y: (row) => row.q[2], fy: panel, fill: paper, stroke: grid, title: (row) => `${name(row.number)}, ${row.kind}: ${row.what === "picked" ? "what goes" : "what stays"}\nleast ${row.q[0].toPrecision(3)}\nmedian ${row.q[2].toPrecision(3)}\nlargest ${row.q[4].toPrecision(3)}` })),
    ],
  }, "Saliency of the structures picked and of those that stay, at every choice");
  return [legend([{ label: "picked: goes", color: colors.picked, mark: "box" }, { label: "stays", color: colors.stays, mark: "box" }], width), chart];
}

// -- recovery --------------------------------------------------------------------------------------------------

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
