// What is written at a node, and how large that is.

const WIDEST = 40;
const measured = new Map();
const pen = document.createElement("canvas").getContext("2d");

export function widthOf(text, size, bold = false) {
  const key = `${size}${bold}${text}`;
  if (!measured.has(key)) {
    pen.font = `${bold ? "bold " : ""}${size}px Helvetica, Arial, "Liberation Sans", sans-serif`;
    measured.set(key, pen.measureText(text).width);
  }
  return measured.get(key);
}

export const short = (text) => (text.length <= WIDEST ? text : `${text.slice(0, WIDEST - 1)}…`);
const unique = (list) => [...new Set(list)];
const range = (sizes) => {
  const [low, high] = [Math.min(...sizes), Math.max(...sizes)];
  return low < high ? `${low}–${high}` : `${low}`;
};

/** Coloured labels of groups, one for all that share a label; under a plan with the sizes before and after. */
export function chipsOf(scene, groups) {
  const found = new Map();
  for (const i of groups) add(found, scene.groups[i].label, [scene.groups[i]]);
  return chips(scene, found);
}

/** A chip for each group of the copy that is shown; it stands for those at the same place of the other copies. */
export function chipsAt(scene, leaf) {
  const found = new Map();
  leaf.shown.forEach((op, i) => op.groups.forEach((g, j) => add(found, scene.groups[g].label, leaf.copies.map((copy) => scene.groups[copy[i].groups[j]]))));
  return chips(scene, found);
}

const add = (found, label, groups) => found.set(label, unique([...(found.get(label) ?? []), ...groups]));

function chips(scene, found) {
  return [...found].map(([label, all]) => {
    const cut = all.some((g) => g.kept !== null && g.kept < g.size);
    const sizes = `${range(all.map((g) => g.size))}→${range(all.map((g) => g.kept ?? g.size))}`;
    const [color, ink] = scene.colors[all[0].color];
    return { label, text: short(cut ? `${label} ${sizes}` : label), color, ink, groups: all };
  });
}

/** Share of the parameters of some tensors that the plan keeps; null where it cuts none. */
function keptOf(scene, tensors) {
  const count = (shape) => shape.reduce((a, b) => a * b, 1);
  const sum = (key) => tensors.reduce((total, i) => total + count(scene.tensors[i][key]), 0);
  const [before, after] = [sum("shape"), sum("after")];
  return scene.planned && after < before ? after / before : null;
}

const nameIn = (path, name) => (path && name.startsWith(`${path}.`) ? name.slice(path.length + 1) : name.slice(name.lastIndexOf(".") + 1));

export function cardOf(scene, leaf) {
  const every = leaf.copies.flat();
  const labels = chipsAt(scene, leaf);
  const tensors = unique(leaf.shown.flatMap((op) => op.tensors)).map((i) => scene.tensors[i]);
  const lines = [];
  if (leaf.item.detail && leaf.item.kind !== "line") {
    const what = leaf.shown.length > 1 ? `${leaf.shown.length} operators` : leaf.shown[0].title;
    lines.push(leaf.item.kind === "composed" ? leaf.item.detail : `${leaf.item.detail}: ${what}`);
  } else if (leaf.shown.length > 3) lines.push(`${leaf.shown.length} operators`);
  for (const tensor of tensors) {
    if (tensor.shape.length > 1) lines.push(`${nameIn(leaf.item.path, tensor.name)}: ${tensor.dims}`);
  }
  const card = {
    title: short(leaf.item.title), lines: lines.map(short), chips: labels, pinned: !labels.length && leaf.shown.some((op) => op.fixed),
    kept: keptOf(scene, unique(every.flatMap((op) => op.tensors))), more: leaf.shown.length > 1,
  };
  const rows = [[]];
  for (const chip of labels) {
    chip.width = widthOf(chip.text, 10) + 10;
    if (rows.at(-1).length === 4) rows.push([]);
    rows.at(-1).push(chip);
  }
  card.rows = rows.filter((row) => row.length);
  const widths = [widthOf(card.title, 12, true) + (card.more ? 28 : 0), ...card.lines.map((line) => widthOf(line, 10)),
    ...card.rows.map((row) => row.reduce((sum, chip) => sum + chip.width + 4, -4)), card.kept === null ? 0 : 120];
  card.width = Math.ceil(Math.max(40, ...widths) + 18);
  card.height = 24 + 13 * card.lines.length + 19 * card.rows.length + (card.kept === null ? 0 : 24);
  return card;
}
