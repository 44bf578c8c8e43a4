// Where everything goes. Each box is laid out by itself, so that opening one only moves what is around it; edges that
// leave a box do so at ports on its border.
import { Graph, layout as arrange } from "@dagrejs/dagre";
import { cardOf, short, widthOf } from "./card.js";

const PAD = 14;
const HEAD = 28;

/** Sets x, y (of the corner, relative to the parent), width, height on every node of a view, and `routes` on clusters. */
export function place(scene, view) {
  const chains = new Map();
  const walk = (node, chain) => {
    node.parent = chain.at(-1) ?? null;
    const here = [...chain, node];
    if (node.children) {
      Object.assign(node, { links: new Map(), ins: new Map(), outs: new Map() });
      node.children.forEach((child) => walk(child, here));
    } else {
      chains.set(node, here);
      node.card = cardOf(scene, node);
      node.width = node.card.width;
      node.height = node.card.height;
    }
  };
  walk(view.root, []);
  for (const edge of view.edges) connect(edge, chains.get(edge.source), chains.get(edge.target));
  const arrangeAll = (cluster) => {
    cluster.children.forEach((child) => child.children && arrangeAll(child));
    arrangeOne(cluster);
  };
  arrangeAll(view.root);
  view.root.x = view.root.y = 0;
}

/** Splits an edge at the borders it crosses: out of the source's boxes, across the box that holds both, into the target's. */
function connect(edge, from, to) {
  let depth = 0;
  while (from[depth] === to[depth]) depth += 1;
  const link = (cluster, a, b, key, dims) => {
    if (!cluster.links.has(key)) cluster.links.set(key, { a, b, dims: new Set(), source: edge.source, targets: new Set() });
    const found = cluster.links.get(key);
    for (const one of dims) found.dims.add(one);
    found.targets.add(edge.target);
  };
  const id = edge.source.id;
  for (let i = from.length - 1; i > depth; i -= 1) {
    from[i - 1].outs.set(id, {});
    link(from[i - 1], from[i], null, `${from[i].id}>>${id}`, []);
  }
  link(from[depth - 1], from[depth], to[depth], `${from[depth].id}>${to[depth].id}>${id}`, edge.dims);
  for (let i = depth; i < to.length - 1; i += 1) {
    to[i].ins.set(id, {});
    link(to[i], null, to[i + 1], `${id}>>${to[i + 1].id}`, []);
  }
}

function arrangeOne(cluster) {
  const graph = new Graph({ multigraph: true });
  graph.setGraph({ rankdir: "TB", nodesep: 16, edgesep: 10, ranksep: 14 });
  graph.setDefaultEdgeLabel(() => ({}));
  for (const child of cluster.children) graph.setNode(child.id, { width: child.width, height: child.height });
  // ports stay at the border: they hang on an unseen node above or below everything, by heavy edges
  const ports = (side, kind, end) => {
    if (side.size) graph.setNode(end, { width: 1, height: 1 });
    for (const id of side.keys()) {
      graph.setNode(kind + id, { width: 6, height: 1 });
      graph.setEdge(...(kind === "in " ? [end, kind + id] : [kind + id, end]), { weight: 20, minlen: 1, width: 0, height: 0 }, "port");
    }
  };
  ports(cluster.ins, "in ", "in");
  ports(cluster.outs, "out ", "out");
  for (const [key, link] of cluster.links) {
    link.lines = [...link.dims].slice(0, 2).map(short);
    if (link.dims.size > 2) link.lines.push(`and ${link.dims.size - 2} more`);
    const width = Math.max(0, ...link.lines.map((line) => widthOf(line, 10))) + (link.lines.length ? 10 : 0);
    const a = link.a ? link.a.id : `in ${link.source.id}`;
    const b = link.b ? link.b.id : `out ${link.source.id}`;
    graph.setEdge(a, b, { width, height: 12 * link.lines.length, labelpos: "c", minlen: 1, weight: link.a && link.b ? 2 : 1 }, key);
  }
  arrange(graph);
  const box = bounds(graph, cluster);
  const [dx, dy] = [PAD - box.left, HEAD + PAD / 2 - box.top];
  for (const child of cluster.children) {
    const { x, y } = graph.node(child.id);
    child.x = x - child.width / 2 + dx;
    child.y = y - child.height / 2 + dy;
  }
  const title = widthOf(cluster.title, 12, true) + widthOf(short(cluster.detail), 10) + (cluster.repeat ? 40 : 0) + 90;
  cluster.width = Math.max(box.right - box.left + 2 * PAD, title);
  cluster.height = box.bottom - box.top + HEAD + PAD * 1.5;
  for (const [id, port] of cluster.ins) port.x = graph.node(`in ${id}`).x + dx;
  for (const [id, port] of cluster.outs) port.x = graph.node(`out ${id}`).x + dx;
  cluster.routes = [...cluster.links].map(([key, link]) => route(graph, cluster, key, link, dx, dy));
}

function bounds(graph, cluster) {
  const box = { left: Infinity, right: -Infinity, top: Infinity, bottom: -Infinity };
  const add = (x, y, width, height) => {
    box.left = Math.min(box.left, x - width / 2);
    box.right = Math.max(box.right, x + width / 2);
    box.top = Math.min(box.top, y - height / 2);
    box.bottom = Math.max(box.bottom, y + height / 2);
  };
  for (const child of cluster.children) {
    const { x, y } = graph.node(child.id);
    add(x, y, child.width, child.height);
  }
  for (const name of graph.edges()) {
    const edge = graph.edge(name);
    if (name.name === "port") continue;
    for (const { x } of edge.points) add(x, (box.top + box.bottom) / 2, 0, 0);
    if (edge.width) add(edge.x, edge.y, edge.width, edge.height);
  }
  return box;
}

function route(graph, cluster, key, link, dx, dy) {
  const a = link.a ? link.a.id : `in ${link.source.id}`;
  const b = link.b ? link.b.id : `out ${link.source.id}`;
  const edge = graph.edge(a, b, key);
  const points = edge.points.map(({ x, y }) => [x + dx, y + dy]);
  const id = link.source.id;
  if (!link.a) points[0] = [cluster.ins.get(id).x, 0];
  else if (link.a.children) points[0] = [link.a.x + link.a.outs.get(id).x, link.a.y + link.a.height];
  if (!link.b) points[points.length - 1] = [cluster.outs.get(id).x, cluster.height];
  else if (link.b.children) points[points.length - 1] = [link.b.x + link.b.ins.get(id).x, link.b.y];
  return { points, lines: link.lines, x: edge.x + dx, y: edge.y + dy, arrow: Boolean(link.b) && !link.b.children, full: [...link.dims].join("\n") };
}
