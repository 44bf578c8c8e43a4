// The report: what the data says, as headings, tables and charts. The data is made by shearfx.viz.report.
import * as charts from "./charts.js";
import { tag } from "./dom.js";
import { saveCsv, saveData, savePng, saveSvg } from "./save.js";
import { isPrinting, onChange } from "./theme.js";

const data = JSON.parse(document.getElementById("data").textContent);
const PAPER = 640; // pixels of the width of a printed page
const drawn = [];

const button = (text, what, does) => tag("button", { type: "button", title: what, "aria-label": what, onclick: does }, text);

function sheetOf(item) {
  const numeric = item.columns.map((_, i) => item.rows.some((row) => "v" in row[i]));
  const head = tag("tr", {}, item.columns.map((name, i) => tag("th", { scope: "col", class: numeric[i] && "number" }, name)));
  const rows = item.rows.map((row, at) =>
    tag("tr", { class: item.first && at === item.first - 1 && at < item.rows.length - 1 ? "last" : null }, row.map((one, i) =>
      tag(i ? "td" : "th", { scope: i ? null : "row", class: [numeric[i] && "number", one.s].filter(Boolean).join(" ") || null }, one.t))),
  );
  const table = tag("div", { class: "scroll" }, tag("table", {}, tag("thead", {}, head), tag("tbody", {}, rows)));
  const csv = button("CSV", `save "${item.title}" as comma-separated values`, () => saveCsv(item.columns, item.rows.map((row) => row.map((one) => one.v ?? one.t)), item.name));
  return framed(item, [table, item.note && tag("p", { class: "note" }, item.note)], [csv]);
}

function codeOf(item) {
  const copy = button("copy", `copy "${item.title}"`, () => navigator.clipboard?.writeText(item.text));
  return framed(item, [tag("pre", {}, item.text)], [copy]);
}

function framed(item, content, saves) {
  const tools = tag("div", { class: "saves" }, saves);
  const attributes = { class: "sheet wide", "data-name": item.name };
  if (item.fold) return tag("details", attributes, tag("summary", {}, item.title), tag("div", { class: "head" }, tag("span"), tools), content);
  return tag("div", attributes, tag("div", { class: "head" }, tag("h3", {}, item.title), tools), content);
}

function figureOf(item) {
  const body = tag("div", { class: "chart" });
  const figure = tag("figure", { class: item.wide ? "wide" : null, "data-name": item.name });
  const tools = tag("div", { class: "saves" },
    button("SVG", `save "${item.title}" as SVG`, () => saveSvg(figure, item.name)),
    button("PNG", `save "${item.title}" as PNG`, () => savePng(figure, item.name)),
    button("CSV", `save the data of "${item.title}"`, () => saveData(item.data, item.name)));
  figure.append(tag("div", { class: "head" }, tag("h3", {}, item.title), tools), body, tag("figcaption", {}, item.note));
  drawn.push(() => {
    const full = isPrinting() ? (item.wide ? PAPER : PAPER / 2 - 20) : body.clientWidth;
    body.replaceChildren(...charts[item.draw](item.data, Math.max(260, Math.floor(full)), item));
    for (const one of body.querySelectorAll("svg:not(.legend)")) one.setAttribute("role", "img");
  });
  return figure;
}

const made = { table: sheetOf, chart: figureOf, code: codeOf };

function top() {
  const header = document.getElementById("top");
  header.append(tag("h1", {}, data.title));
  for (const run of data.runs) {
    const state = tag("span", { class: `state ${run.done ? "done" : "open"}` }, run.state);
    const name = data.runs.length > 1 ? tag("b", {}, `${run.name} `) : null;
    header.append(tag("div", { class: "run" }, tag("p", {}, name, state, tag("span", { class: "muted where" }, `${run.model ? `${run.model}, in ` : "in "}${run.path}`)), run.summary && tag("p", {}, run.summary)));
    if (data.runs.length === 1 && run.tiles.length)
      header.append(tag("div", { class: "tiles" }, run.tiles.map((one) => tag("div", { class: "tile" }, tag("b", {}, one.value), tag("span", {}, one.label), tag("span", { class: "muted" }, one.note)))));
    if (run.missing.length)
      header.append(tag("div", { class: "missing", role: "note" }, tag("b", {}, data.runs.length > 1 ? `Missing of ${run.name}` : "Missing"), tag("ul", {}, run.missing.map((one) => tag("li", {}, one)))));
  }
}

top();
for (const part of data.sections) {
  const id = `section-${part.name}`;
  document.getElementById("contents").append(tag("a", { href: `#${id}` }, part.title));
  const items = tag("div", { class: "items" }, part.items.map((item) => made[item.kind](item)));
  document.getElementById("sections").append(tag("section", { id }, tag("h2", {}, part.title), part.intro && tag("p", { class: "muted" }, part.intro), items));
}
document.getElementById("end").append(`Written by shearfx ${data.version}. Charts: Observable Plot. This file holds everything it shows and asks no network.`);

const drawAll = () => drawn.forEach((draw) => draw());
drawAll();
onChange(drawAll);
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  requestAnimationFrame(drawAll);
});
// what is folded is printed too
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => (one.open = true)));
