// The page: what is opened, what is chosen, where the reader looks.
import { select } from "d3-selection";
import { zoom, zoomIdentity } from "d3-zoom";
import { Picture } from "./draw.js";
import { place } from "./layout.js";
import { isOp, opsOf, readScene, viewOf } from "./model.js";
import { Panel, tag } from "./panel.js";
import { addSearch } from "./search.js";

const scene = readScene(JSON.parse(document.getElementById("data").textContent));
const svg = document.getElementById("picture");
const READABLE = 0.75; // scale at which the page opens, at least
const choices = new Map(); // id of an item: whether the reader opened it
let view = null;
let transform = zoomIdentity;
let group = null; // that lights up
let chosen = null; // id of a node
let printing = false;

const hasGroup = (ops) => group !== null && ops.some((op) => op.groups.includes(group));
const look = (node) => {
  const here = node.children ? hasGroup(opsOf(scene, node.item)) : hasGroup(node.copies.flat());
  return { lit: here && !node.children, holds: here && Boolean(node.children), chosen: node.id === chosen };
};

const picture = new Picture(svg, look, act);
const panel = new Panel(scene, act);
const behaviour = zoom()
  .scaleExtent([0.004, 6])
  .filter((event) => !event.button && event.type !== "dblclick")
  .on("zoom", (event) => {
    transform = event.transform;
    request();
  });
select(svg).call(behaviour);

let waiting = false;
function request() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    if (!printing) picture.sync(transform);
  });
}

function redraw() {
  view = viewOf(scene, choices);
  place(scene, view);
  picture.show(view.root, scene);
  picture.sync(transform);
}

const nodeOf = (id) => {
  const find = (node) => (node.id === id ? node : node.children?.map(find).find(Boolean));
  return find(view.root);
};

function corner(node) {
  let [x, y] = [0, 0];
  for (let one = node; one; one = one.parent) [x, y] = [x + one.x, y + one.y];
  return [x, y];
}

/** Bring a node to the middle, as large as fits; where that would be less than `least`, its top. */
function lookAt(node, least = 0) {
  const { width, height } = svg.getBoundingClientRect();
  const scale = Math.max(least, Math.min(1.4, (0.94 * width) / node.width, (0.94 * height) / node.height));
  const [x, y] = corner(node);
  const top = Math.max(12, height / 2 - (scale * node.height) / 2);
  const to = zoomIdentity.translate(width / 2 - scale * (x + node.width / 2), top - scale * y).scale(scale);
  select(svg).call(behaviour.transform, to);
  picture.sync(transform);
}

/** Open or close, and keep what was clicked where it is on the screen. */
function toggle(node) {
  if (isOp(node.item) || node.item === scene.root) return;
  const [x, y] = corner(node);
  const open = node.item.kind === "fold" ? !node.repeat : Boolean(node.children);
  choices.set(node.item.id, !open);
  redraw();
  const after = nodeOf(node.id);
  const [nx, ny] = after ? corner(after) : [x, y];
  select(svg).call(behaviour.transform, transform.translate(x - nx, y - ny));
  request();
  if (after && chosen === after.id) choose(after);
}

/** Show an operator or a box, whatever it is folded or closed into. */
function reveal(item, inside = item) {
  for (let one = inside.parent; one; one = one.parent) {
    if (one.kind !== "fold") choices.set(one.id, true);
    else if (!one.copies[0].some((first) => contains(first, item))) choices.set(one.id, true);
  }
  redraw();
  const ops = opsOf(scene, item);
  const node = nodeOf(item.id) ?? view.place[ops[0].index].leaf;
  choose(node);
  lookAt(node);
}

const contains = (outer, item) => {
  for (let one = item; one; one = one.parent) if (one === outer) return true;
  return false;
};

function choose(node) {
  chosen = node.id;
  picture.markAll();
  if (node.children) panel.box(node);
  else panel.node(node);
}

function light(found) {
  group = found === null ? null : scene.groups.indexOf(found);
  svg.classList.toggle("focus", group !== null);
  picture.markAll();
  request();
  if (found) panel.group(found, scene.ops.filter((op) => op.groups.includes(group)).length);
  else panel.overview();
}

function act(what, which) {
  if (what === "choose") choose(which);
  else if (what === "toggle") toggle(which);
  else if (what === "group") light(which);
  else if (what === "op") reveal(scene.byName.get(which));
  else if (what === "item") reveal(which);
  else if (what === "tensor") {
    const reader = scene.ops.find((op) => op.tensors.includes(which));
    const box = reader?.parent && !reader.parent.open && reader.parent.kind !== "fold" ? reader.parent : reader;
    if (box) reveal(box);
    else panel.show(tag("h2", {}, scene.tensors[which].name), tag("p", {}, "the traced call never reaches it, so it is pinned"));
  } else {
    chosen = null;
    light(null);
  }
}

function all(open) {
  choices.clear();
  if (open) for (const item of scene.items.values()) if (item.kind === "fold") choices.set(item.id, true);
  redraw();
  lookAt(view.root);
}

const keys = { f: () => lookAt(view.root), u: () => all(true), Escape: () => act("none"), "/": () => input.focus() };
const step = (factor) => () => select(svg).call(behaviour.scaleBy, factor);
const tools = [["fit", "fit", keys.f], ["+", "zoom in", step(1.4)], ["−", "zoom out", step(1 / 1.4)], ["unfold all", "unfold every layer", keys.u], ["fold all", "fold again", () => all(false)]];
document.getElementById("tools").append(...tools.map(([text, what, does]) => tag("button", { title: what, "aria-label": what, onclick: does }, text)));
const input = addSearch(scene, act);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
});
new ResizeObserver(request).observe(svg);
svg.setAttribute("aria-label", `${scene.title}: ${scene.summary}`);
panel.overview();
panel.keys();
redraw();
lookAt(view.root, READABLE);
addEventListener("beforeprint", () => {
  printing = true;
  picture.whole();
});
addEventListener("afterprint", () => {
  printing = false;
  picture.sync(transform);
});
