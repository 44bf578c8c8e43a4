// What is said beside the picture. Names come from models of strangers: they go in as text, never as markup.
import { chipsAt, chipsOf } from "./card.js";

export function tag(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") element.style.cssText = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== ""));
  return element;
}

const number = (n) => n.toLocaleString("en");
const unique = (list) => [...new Set(list)];

export class Panel {
  constructor(scene, act) {
    this.scene = scene;
    this.act = act;
    this.detail = document.getElementById("detail");
    this.legend = document.getElementById("legend");
  }

  badge(group, text = group.label) {
    const [color, ink] = this.scene.colors[group.color];
    const attributes = { class: "badge", style: `background:${color};color:${ink}`, title: group.name, "data-group": group.name };
    return tag("button", { ...attributes, onclick: () => this.act("group", group) }, text);
  }

  show(...children) {
    this.detail.replaceChildren(...children.filter(Boolean));
    this.detail.parentElement.scrollTop = 0;
  }

  overview() {
    const { title, summary, version } = this.scene;
    const about = "Click a node or a group; double-click or + opens, unfold shows every layer. Keys: / search, f fit, u unfold all, Esc back.";
    this.show(tag("h1", {}, title), tag("p", {}, summary), tag("p", { class: "muted" }, `${about} Drawn by shearfx ${version}.`));
  }

  /** A node: what it is, what it computes, which groups pass through it, and why it is pinned where it is. */
  node(leaf) {
    const ops = leaf.shown;
    const { item } = leaf;
    const copies = leaf.copies.length > 1 ? `one of ${leaf.copies.length} alike; the first is shown` : null;
    const tensors = unique(ops.flatMap((op) => op.tensors)).map((i) => this.scene.tensors[i]);
    this.show(
      tag("h2", {}, item.path ?? item.name ?? item.title), tag("p", { class: "muted" }, [item.title, item.detail].filter(Boolean).join(" · ")),
      copies && tag("p", { class: "muted" }, copies),
      ops.length > 1 && this.opener(leaf, "open"),
      tag("h3", {}, "result"), tag("p", {}, tag("code", {}, ops.at(-1).dims || "none")),
      ...this.section("groups", chipsAt(this.scene, leaf).map((chip) => tag("li", {}, this.badge(chip.groups[0]), ` ${chip.groups[0].certificate}`))),
      ...this.section("parameters", tensors.map((t) => this.tensor(t))),
      ...this.section("why is this pinned?", unique(ops.flatMap((op) => op.pins)).map((i) => this.pin(this.scene.pins[i]))),
      ...this.section("source", unique(ops.map((op) => op.source)).filter(Boolean).slice(0, 6).map((s) => tag("li", {}, tag("code", {}, s)))),
      ...this.section(ops.length > 1 ? `${ops.length} operators` : "", ops.slice(0, 60).map((op) => tag("li", {}, tag("code", {}, `${op.name} = ${op.title}: ${op.dims}`)))),
    );
  }

  section(title, rows) {
    return rows.length && title ? [tag("h3", {}, title), tag("ul", {}, ...rows)] : [];
  }

  tensor(t) {
    const changed = this.scene.planned && t.after.join() !== t.shape.join() ? ` → [${t.after.join(", ")}]` : "";
    return tag("li", {}, tag("code", {}, t.name), tag("span", { class: "muted" }, ` [${t.dims}] = [${t.shape.join(", ")}]${changed}`));
  }

  pin(pin) {
    const where = this.scene.byName.has(pin.node) ? tag("button", { class: "plain", onclick: () => this.act("op", pin.node) }, pin.node) : pin.node;
    const said = pin.node ? [", said by ", where] : [];
    return tag("li", {}, tag("code", {}, pin.dims), `: ${pin.reason}`, ...said, pin.source ? tag("p", { class: "muted" }, tag("code", {}, pin.source)) : null);
  }

  box(node) {
    const { item } = node;
    const kind = item.kind === "fold" ? `${item.copies.length} alike, one after the other` : item.detail;
    const what = item.kind !== "fold" ? "close" : node.repeat ? "unfold" : "fold";
    const above = item === this.scene.root ? null : this.opener(node, what);
    this.show(tag("h2", {}, item.path || item.title), tag("p", { class: "muted" }, kind), above);
  }

  /** Opens and closes what is chosen, for those who have no mouse; keeps the focus for the way back. */
  opener(node, what) {
    const press = () => {
      this.act("toggle", node);
      this.detail.querySelector(".opener")?.focus();
    };
    return tag("button", { class: "opener", onclick: press }, what);
  }

  group(group, seen) {
    const kept = group.kept !== null && group.kept < group.size ? `, the plan keeps ${number(group.kept)}` : "";
    const rows = group.members.map(({ tensor, dim, term }) => {
      const jump = tag("button", { class: "plain", onclick: () => this.act("tensor", tensor) }, this.scene.tensors[tensor].name);
      return tag("tr", {}, tag("td", {}, jump), tag("td", {}, String(dim)), tag("td", {}, tag("code", {}, term)));
    });
    const head = tag("tr", {}, ...["member", "dim", "term"].map((text) => tag("th", {}, text)));
    const [first] = [group.source].filter(Boolean);
    this.show(
      tag("h2", {}, this.badge(group), group.name),
      tag("p", {}, `${number(group.size)} ${group.kind}${kept}; each takes ${number(group.params)} parameters along.`),
      tag("p", { "data-certificate": group.certificate }, tag("b", {}, group.certificate), group.reason ? `: ${group.reason}` : ": cutting it is the same as zeroing it"),
      first ? tag("p", { class: "muted" }, tag("code", {}, first)) : null,
      tag("p", { class: "muted" }, `${seen} nodes light up. `),
      tag("button", { onclick: () => this.act("none") }, "show all"),
      tag("h3", {}, `${group.members.length} members`), tag("table", {}, head, ...rows),
    );
  }

  /** A line for each label; groups that differ only in their layer are listed behind it. */
  keys() {
    const rows = chipsOf(this.scene, this.scene.groups.keys()).map((chip) => {
      const { groups } = chip;
      const sizes = unique(groups.map((g) => number(g.size))).join(", ");
      const told = ` ${groups[0].kind}: ${sizes}; ${unique(groups.map((g) => g.certificate)).join(", ")}`;
      if (groups.length === 1) return tag("li", {}, this.badge(groups[0], chip.text), told);
      const list = tag("details", {}, tag("summary", { class: "muted" }, `all ${groups.length}`));
      list.addEventListener("toggle", () => list.childElementCount === 1 && list.append(tag("ul", {}, ...groups.map((g) => tag("li", {}, tag("button", { class: "plain", onclick: () => this.act("group", g) }, g.name))))));
      return tag("li", {}, this.badge(groups[0], chip.text), `${told} × ${groups.length}`, list);
    });
    const key = (kind, text) => tag("li", {}, tag("span", { class: `key ${kind}` }), ` ${text}`);
    this.legend.replaceChildren(
      tag("h3", {}, "groups"), tag("ul", {}, ...rows), tag("h3", {}, "legend"),
      tag("ul", {}, key("", "operator or module; its labels are the groups that meet there"), key("dashed", "pinned: nothing of it may be cut"),
        key("bold", "repeated layers, folded"), tag("li", {}, "on edges: dims as terms; B batch, S sequence; numbers are sizes that stay")),
    );
  }
}
