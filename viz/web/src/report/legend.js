// What colours, strokes and marks say, as a picture of its own above a chart, so that it is saved with it.
import { symbol, symbolCircle, symbolCross, symbolDiamond, symbolSquare, symbolSquare2, symbolStar, symbolTriangle, symbolWye } from "d3-shape";
import { svg } from "./dom.js";
import { theme } from "./theme.js";

const LINE = 20;
const shapes = { circle: symbolCircle, square: symbolSquare, triangle: symbolTriangle, diamond: symbolDiamond, star: symbolStar, wye: symbolWye, square2: symbolSquare2, cross: symbolCross };
const SIZE = 85; // square pixels of a mark

/** Items: `{label, color, dash, width, opacity, mark: "line" | "box" | "dot" | "ring", symbol}`; a line may carry a symbol. */
export function legend(items, width) {
  const { ink } = theme();
  const measure = document.createElement("canvas").getContext("2d");
  measure.font = "12px system-ui, Helvetica, Arial, sans-serif";
  const group = svg("g", { "font-size": 12, fill: ink });
  let [x, y] = [0, 0];
  for (const item of items) {
    const label = item.label.length > 60 ? `${item.label.slice(0, 58)}…` : item.label;
    const wide = 30 + 1.06 * measure.measureText(label).width + 18;
    if (x && x + wide > width) [x, y] = [0, y + LINE];
    const middle = y + 9;
    if (item.mark === "box") group.append(svg("rect", { x, y: middle - 6, width: 22, height: 12, rx: 2, fill: item.color, "fill-opacity": item.opacity ?? 1 }));
    else if (item.mark !== "dot" && item.mark !== "ring") group.append(svg("line", { x1: x, x2: x + 22, y1: middle, y2: middle, stroke: item.color, "stroke-width": item.width ?? 2.2, "stroke-dasharray": item.dash ?? "none" }));
    if (item.symbol) {
      const ring = item.mark === "ring";
      const look = ring ? { fill: "none", stroke: item.color, "stroke-width": 1.8 } : { fill: item.color };
      group.append(svg("path", { d: symbol(shapes[item.symbol], SIZE)(), transform: `translate(${x + 11},${middle})`, ...look }));
    }
    const text = svg("text", { x: x + 28, y: middle + 4 });
    text.textContent = label;
    group.append(text);
    x += wide;
  }
  const height = y + LINE + 4;
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, class: "legend", "aria-hidden": "true", "font-family": "system-ui, Helvetica, Arial, sans-serif" }, group);
}
