// The scene that shearfx wrote into the page, with its cross references resolved.

/** Operators, boxes and folds of the data, linked to their parents; ops in the order of execution. */
export function readScene(data) {
  const text = (i) => data.texts[i];
  const scene = { ...data, ops: [], items: new Map() };
  const read = (raw, parent) => {
    if ("o" in raw) {
      const op = {
        kind: text(raw.k), name: text(raw.o), title: text(raw.t), dims: text(raw.d ?? 0), inputs: raw.i ?? [], tensors: raw.w ?? [],
        groups: raw.g ?? [], pins: raw.p ?? [], fixed: Boolean(raw.f), source: text(raw.s ?? 0), parent, index: scene.ops.length,
      };
      op.id = `op:${op.name}`;
      scene.ops.push(op);
      scene.items.set(op.id, op);
      return op;
    }
    const item = { id: raw.id, title: text(raw.t), parent, first: scene.ops.length };
    scene.items.set(item.id, item);
    if ("x" in raw) {
      item.kind = "fold";
      item.copies = raw.x.map((copy) => copy.map((one) => read(one, item)));
    } else {
      Object.assign(item, { kind: text(raw.k), path: text(raw.p), detail: text(raw.d), open: Boolean(raw.open) });
      item.children = raw.c.map((one) => read(one, item));
    }
    item.last = scene.ops.length;
    return item;
  };
  scene.root = read(data.root, null);
  scene.root.open = true;
  for (const group of scene.groups) group.members = group.members.map(([tensor, dim, term]) => ({ tensor, dim, term: text(term) }));
  for (const tensor of scene.tensors) tensor.dims = text(tensor.dims);
  scene.byName = new Map(scene.ops.map((op) => [op.name, op]));
  return scene;
}

export const isOp = (item) => "inputs" in item;

/** All operators of an item; of a fold, those of every copy. */
export function opsOf(scene, item) {
  return isOp(item) ? [item] : scene.ops.slice(item.first, item.last);
}

/** Whether an item shows what is inside it; `choices` holds what the reader opened and closed. */
export function isOpen(item, choices) {
  return choices.get(item.id) ?? (item.kind === "fold" ? false : item.open);
}

/**
 * What is seen: nested clusters and leaves, and the edges between leaves. The same as `folded` in view.py, but for
 * what the reader opened.
 */
export function viewOf(scene, choices) {
  const leaves = [];
  const place = new Array(scene.ops.length);
  const visit = (item, twins) => {
    if (isOp(item) || (item.kind !== "fold" && !isOpen(item, choices))) {
      const leaf = { id: item.id, item, shown: opsOf(scene, item), copies: [item, ...twins].map((one) => opsOf(scene, one)) };
      leaf.copies.forEach((copy, k) => copy.forEach((op) => (place[op.index] = { leaf, k })));
      leaves.push(leaf);
      return leaf;
    }
    if (item.kind !== "fold") {
      return { id: item.id, item, title: item.title, detail: item.detail, children: visitAll(item.children, twins.map((t) => t.children)) };
    }
    if (isOpen(item, choices)) {
      const every = item.copies.map((copy, k) => visitAll(copy, twins.map((t) => t.copies[k])));
      return { id: item.id, item, title: item.title, detail: "", children: every.flat() };
    }
    const every = [item, ...twins].flatMap((one) => one.copies);
    const inside = visitAll(every[0], every.slice(1));
    const only = inside.length === 1 && inside[0].children && inside[0].item.kind !== "fold" ? inside[0] : null;
    return { id: item.id, item, title: item.title, detail: only?.detail ?? "", repeat: item.copies.length, children: only?.children ?? inside };
  };
  const visitAll = (children, twins) => children.map((child, i) => visit(child, twins.map((t) => t[i])));
  const root = visit(scene.root, []);
  const found = new Map();
  for (const op of scene.ops) {
    const { leaf, k } = place[op.index];
    for (const i of op.inputs) {
      const source = place[i];
      if (source.leaf === leaf || (source.leaf.copies.length > 1 && leaf.copies.length > 1 && source.k !== k)) continue;
      const key = `${source.leaf.id}\n${leaf.id}`;
      if (!found.has(key)) found.set(key, { source: source.leaf, target: leaf, dims: new Set() });
      found.get(key).dims.add(scene.ops[i].dims);
    }
  }
  return { root, leaves, edges: [...found.values()], place };
}
