// All charts by name: rows and a width in, a legend and a picture out. All are SVG by Observable Plot.
export { knowledge } from "./knowledge.js";
export { degradation, sampling } from "./recovery.js";
export { levels } from "./result.js";
export { saliency } from "./saliency.js";
export { fading, loss } from "./training.js";
export { widths } from "./widths.js";
