// What is used of Observable Plot, so that the rest of it stays out of the bundle.
export {
  areaY, barY, cell, dot, frame, gridX, gridY, line, plot, pointer, pointerX, ruleX, ruleY, stackY, text, tickY, tip,
} from "@observablehq/plot";
