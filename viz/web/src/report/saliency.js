// How salient what goes is beside what stays.
import { unique, pair, draw, gridY } from "./axes.js";
import { legend } from "./legend.js";
import * as Plot from "./plot.js";
import { theme } from "./theme.js";

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
