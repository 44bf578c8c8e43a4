// An unfolded fold: its repetitions stand in columns, so that all of them fit on a screen, not on a tower of paper.
import { short } from "./card.js";

const GAP = 40;
const STEP = 5; // between lines that run beside each other
const SHAPE = 1.5; // of a screen: width over height

export function arrangeGrid(cluster, pad, head) {
  const { children } = cluster;
  const lanes = cluster.ins.size + 1;
  const gutter = GAP + STEP * lanes;
  const width = Math.max(...children.map((child) => child.width)) + gutter;
  const height = Math.max(...children.map((child) => child.height)) + GAP;
  const columns = Math.min(children.length, Math.max(1, Math.round(Math.sqrt((SHAPE * children.length * height) / width))));
  const rows = Math.ceil(children.length / columns);
  const top = head + pad + STEP * lanes;
  children.forEach((child, i) => {
    child.column = Math.floor(i / rows);
    child.x = pad + gutter + child.column * width;
    child.y = top + GAP / 2 + (i % rows) * height;
  });
  cluster.width = pad * 2 + gutter + Math.ceil(children.length / rows) * width;
  cluster.height = top + GAP / 2 + rows * height + pad;
  [...cluster.ins.values()].forEach((port, k) => Object.assign(port, { lane: k + 1, x: pad + STEP * (k + 1) }));
  [...cluster.outs.values()].forEach((port, k) => (port.x = cluster.width - pad - STEP * (k + 1)));
  cluster.routes = [...cluster.links.values()].map((link) => route(cluster, link, width, gutter));
}

function route(cluster, link, width, gutter) {
  const id = link.source.id;
  const lines = [...link.dims].slice(0, 2).map(short);
  const beside = (child) => child.x - gutter + 12; // in the gutter left of a column
  const end = link.b ? (link.b.children ? link.b.x + link.b.ins.get(id).x : link.b.x + link.b.width / 2) : cluster.outs.get(id).x;
  const start = link.a ? (link.a.children ? link.a.x + link.a.outs.get(id).x : link.a.x + link.a.width / 2) : cluster.ins.get(id).x;
  let points;
  let at = null;
  if (!link.a) {
    const { lane } = cluster.ins.get(id);
    const [along, down] = [24 + STEP * lane, beside(link.b) + STEP * lane];
    points = [[start, 0], [start, along], [down, along], [down, link.b.y - 4 - STEP * lane / 2], [end, link.b.y - 4 - STEP * lane / 2], [end, link.b.y]];
  } else {
    const below = link.a.y + link.a.height;
    if (!link.b) points = [[start, below], [start, below + 10], [link.a.x + width - gutter + 8, below + 10], [link.a.x + width - gutter + 8, cluster.height - 8], [end, cluster.height - 8], [end, cluster.height]];
    else if (link.b.column === link.a.column && Math.abs(link.b.y - below) <= GAP + 1) {
      points = [[start, below], [start, below + GAP / 2], [end, below + GAP / 2], [end, link.b.y]];
      at = [(start + end) / 2, below + GAP / 2 - 8];
    } else {
      const right = link.a.x + width - gutter + 8;
      points = [[start, below], [start, below + 10], [right, below + 10], [right, link.b.y - 12], [end, link.b.y - 12], [end, link.b.y]];
    }
  }
  return { points, lines: at ? lines : [], x: at?.[0], y: at?.[1], straight: true, arrow: Boolean(link.b) && !link.b.children, full: [...link.dims].join("\n") };
}
