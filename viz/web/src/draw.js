// The picture: SVG of what is on the screen and large enough to be read, made when it comes into view.
import { curveBasis, curveLinear, line } from "d3-shape";

const SVG = "http://www.w3.org/2000/svg";
const SMALLEST = 12; // pixels: a box lower than this on the screen shows no inside
const LEGIBLE = 0.22; // below this scale there are no texts, and no edges inside of inner boxes
const MARGIN = 200; // pixels around the screen that are drawn already
const curve = line().curve(curveBasis);
const straight = line().curve(curveLinear);

export function make(name, attributes = {}, text = null) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== null) element.textContent = text;
  return element;
}

export class Picture {
  /** `look` says of a node what it is at the moment: {lit, chosen, holds}; `act` is told of clicks. */
  constructor(svg, look, act) {
    this.svg = svg;
    this.look = look;
    this.act = act;
    this.layer = svg.appendChild(make("g", { class: "layer" }));
  }

  show(root, scene) {
    this.root = root;
    this.scene = scene;
    this.layer.replaceChildren(this.element(root, 0));
  }

  /** Draw what `transform` brings into view, let go of what it takes away. */
  sync(transform) {
    this.svg.removeAttribute("viewBox");
    this.layer.setAttribute("transform", transform);
    this.svg.classList.toggle("far", transform.k < LEGIBLE);
    const { width, height } = this.svg.getBoundingClientRect();
    const seen = [
      (-MARGIN - transform.x) / transform.k, (-MARGIN - transform.y) / transform.k,
      (width + MARGIN - transform.x) / transform.k, (height + MARGIN - transform.y) / transform.k,
    ];
    this.visit(this.root, 0, 0, seen, transform.k, 0);
  }

  /** Draw all of it with every text, as large as the element lets it be: for paper. */
  whole() {
    this.svg.setAttribute("viewBox", `-2 -2 ${this.root.width + 4} ${this.root.height + 4}`);
    this.svg.classList.remove("far");
    this.layer.removeAttribute("transform");
    this.visit(this.root, 0, 0, [-Infinity, -Infinity, Infinity, Infinity], 1, 0);
  }

  visit(node, x, y, [left, top, right, bottom], scale, depth) {
    const inside = node.element.inside;
    if (depth && node.height * scale < SMALLEST) {
      inside.replaceChildren();
      node.filled = false;
      return;
    }
    const edges = scale >= LEGIBLE || depth < 3;
    if (edges && !node.filled) inside.prepend(...this.edges(node));
    else if (!edges && node.filled) inside.replaceChildren();
    node.filled = edges;
    for (const child of node.children) {
      const [cx, cy] = [x + child.x, y + child.y];
      const visible = cx < right && cx + child.width > left && cy < bottom && cy + child.height > top;
      const element = visible || child.element?.group.isConnected ? this.element(child, depth + 1) : null;
      if (visible && !element.parentNode) inside.append(element);
      else if (visible && element.parentNode !== inside) inside.append(element);
      else if (!visible && element) element.remove();
      if (visible && !child.children) this.detail(child, scale);
      if (visible && child.children) this.visit(child, cx, cy, [left, top, right, bottom], scale, depth + 1);
    }
  }

  element(node, depth) {
    if (!node.element) node.element = node.children ? this.box(node, depth) : this.leaf(node);
    this.mark(node);
    return node.element.group;
  }

  /** Light up, or no longer. */
  mark(node) {
    const { lit, chosen, holds } = this.look(node);
    node.element.group.classList.toggle("lit", lit);
    node.element.group.classList.toggle("chosen", chosen);
    node.element.group.classList.toggle("holds", holds);
  }

  markAll() {
    const walk = (node) => {
      if (node.element) this.mark(node);
      node.children?.forEach(walk);
    };
    walk(this.root);
  }

  frame(node, kind) {
    const group = make("g", { class: kind, transform: `translate(${node.x},${node.y})`, "data-id": node.id });
    const frame = make("rect", { class: "frame", width: node.width, height: node.height, rx: 7 });
    frame.addEventListener("click", () => this.act("choose", node));
    frame.addEventListener("dblclick", (event) => {
      event.stopPropagation();
      this.act("toggle", node);
    });
    group.append(frame);
    return group;
  }

  toggle(node, x, y, sign, what) {
    const group = make("g", { class: "toggle", transform: `translate(${x},${y})`, role: "button", "data-toggle": node.id });
    const width = sign.length > 1 ? sign.length * 6 + 12 : 16;
    group.append(make("title", {}, what), make("rect", { width, height: 16, rx: 4 }), make("text", { x: width / 2, y: 12 }, sign));
    group.addEventListener("click", () => this.act("toggle", node));
    return group;
  }

  box(node, depth) {
    const fold = node.item.kind === "fold";
    const group = this.frame(node, `box${depth % 2 ? " odd" : ""}${fold ? " fold" : ""}`);
    const title = make("text", { class: "title", x: 10, y: 18 }, node.title + (node.repeat ? `  × ${node.repeat}` : ""));
    title.append(make("tspan", { class: "line", dx: 8, "font-weight": 400 }, node.detail.length > 40 ? `${node.detail.slice(0, 39)}…` : node.detail));
    group.append(title);
    if (fold) {
      const sign = node.repeat ? "unfold" : "fold";
      group.append(this.toggle(node, node.width - 60, 6, sign, node.repeat ? "show every one of them" : "show one for all"));
    } else if (depth) group.append(this.toggle(node, node.width - 24, 6, "−", "close"));
    const inside = make("g");
    group.append(inside);
    return { group, inside };
  }

  edges(cluster) {
    const [found, labels] = [[], []];
    for (const { points, lines, x, y, arrow, full, straight: plain } of cluster.routes) {
      const way = plain ? straight : curve;
      const path = make("path", { class: "edge", d: way(points) });
      path.append(make("title", {}, full));
      found.push(path);
      if (arrow) {
        const [[ax, ay], [bx, by]] = points.slice(-2);
        const angle = (Math.atan2(by - ay, bx - ax) * 180) / Math.PI;
        found.push(make("path", { class: "arrow", d: "M0,0L-6,-3L-6,3Z", transform: `translate(${bx},${by})rotate(${angle})` }));
      }
      lines.forEach((text, i) => {
        const at = y - 6 * lines.length + 12 * i + 9;
        labels.push(make("text", { class: "label", x, y: at, "text-anchor": "middle" }, text));
      });
    }
    return [...found, ...labels]; // texts lie over lines
  }

  /** Texts and labels of a node, while they can be read. */
  detail(node, scale) {
    const legible = scale >= LEGIBLE;
    if (legible && !node.told) {
      node.told = make("g");
      this.write(node, node.told);
    }
    if (legible && !node.told.parentNode) node.element.group.append(node.told);
    else if (!legible) node.told?.remove();
  }

  leaf(node) {
    const { card } = node;
    const group = this.frame(node, `leaf${card.pinned ? " pinned" : ""}${card.more ? " more" : ""}`);
    if (card.chips.length) {
      const width = node.width / card.chips.length;
      card.chips.forEach((chip, i) => group.append(make("rect", { class: "stripe", x: i * width, y: node.height - 4, width, height: 4, fill: chip.color })));
    }
    return { group };
  }

  write(node, group) {
    const { card } = node;
    const middle = node.width / 2;
    const pins = node.shown.flatMap((op) => op.pins).map((i) => `${this.scene.pins[i].dims}: ${this.scene.pins[i].reason}`);
    const told = [node.item.path, node.shown.at(-1).dims, ...(pins.length ? ["pinned", ...new Set(pins)] : [])];
    node.element.group.firstChild.append(make("title", {}, told.filter(Boolean).join("\n")));
    group.append(make("text", { class: "title", x: card.more ? middle - 12 : middle, y: 16, "text-anchor": "middle" }, card.title));
    let y = 29;
    for (const text of card.lines) {
      group.append(make("text", { class: "line", x: middle, y, "text-anchor": "middle" }, text));
      y += 13;
    }
    if (card.kept !== null) {
      group.append(make("rect", { class: "stays", x: middle - 50, y: y - 8, width: 100 * card.kept, height: 6 }));
      group.append(make("rect", { class: "bar", x: middle - 50, y: y - 8, width: 100, height: 6 }));
      const cut = `${(100 * (1 - card.kept)).toFixed(1)}% of its parameters cut`;
      group.append(make("text", { class: "cut", x: middle, y: y + 8, "text-anchor": "middle" }, cut));
      y += 24;
    }
    for (const row of card.rows) {
      let x = middle - row.reduce((sum, chip) => sum + chip.width + 4, -4) / 2;
      for (const chip of row) {
        group.append(make("rect", { x, y: y - 8, width: chip.width, height: 15, rx: 3, fill: chip.color, "pointer-events": "none" }));
        group.append(make("text", { class: "chip", x: x + chip.width / 2, y: y + 3, "text-anchor": "middle", style: `fill:${chip.ink}` }, chip.text));
        x += chip.width + 4;
      }
      y += 19;
    }
    if (card.more) group.append(this.toggle(node, node.width - 21, 5, "+", `show its ${node.shown.length} operators`));
  }
}
