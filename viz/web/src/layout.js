// Where everything goes. Each box is laid out by itself, so that opening one only moves what is around it; edges that
// leave a box do so at ports on its border.
import { Graph, layout as arrange } from "@dagrejs/dagre";
import { cardOf, short, widthOf } from "./card.js";
import { arrangeGrid } from "./grid.js";

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
    if (cluster.item.kind === "fold" && !cluster.repeat) arrangeGrid(cluster, PAD, HEAD);
    else arrangeOne(cluster);
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

const known = new Map(); // layouts that were made, by what went into them: layers that look alike need one

function arrangeOne(cluster) {
  const places = new Map(cluster.children.map((child, i) => [child, `c${i}`]));
  const ports = new Map([...new Set([...cluster.ins.keys(), ...cluster.outs.keys()])].map((id, i) => [id, i]));
  const links = [...cluster.links.values()];
  const nodes = cluster.children.map((child) => [places.get(child), child.width, child.height]);
  const edges = links.map((link) => {
    link.lines = [...link.dims].slice(0, 2).map(short);
    if (link.dims.size > 2) link.lines.push(`and ${link.dims.size - 2} more`);
    const port = ports.get(link.source.id);
    const width = Math.max(0, ...link.lines.map((line) => widthOf(line, 10))) + (link.lines.length ? 10 : 0);
    return [link.a ? places.get(link.a) : `in ${port}`, link.b ? places.get(link.b) : `out ${port}`, width, 12 * link.lines.length, port ?? -1];
  });
  const [ins, outs] = [[...cluster.ins.keys()], [...cluster.outs.keys()]].map((ids) => ids.map((id) => ports.get(id)));
  const key = JSON.stringify([nodes, edges, ins, outs]);
  if (!known.has(key)) known.set(key, solve(nodes, edges, ins, outs));
  const found = known.get(key);
  cluster.children.forEach((child, i) => ([child.x, child.y] = found.corners[i]));
  const title = widthOf(cluster.title, 12, true) + widthOf(short(cluster.detail), 10) + (cluster.repeat ? 40 : 0) + 90;
  cluster.width = Math.max(found.width, title);
  cluster.height = found.height;
  for (const [id, port] of cluster.ins) port.x = found.ports[`in ${ports.get(id)}`];
  for (const [id, port] of cluster.outs) port.x = found.ports[`out ${ports.get(id)}`];
  cluster.routes = links.map((link, i) => route(cluster, link, found.edges[i]));
}

/** Layout by dagre: corners of the nodes, ports, points and label of each edge, and the size of it all. */
function solve(nodes, edges, ins, outs) {
  const graph = new Graph({ multigraph: true });
  graph.setGraph({ rankdir: "TB", nodesep: 16, edgesep: 10, ranksep: 14 });
  for (const [id, width, height] of nodes) graph.setNode(id, { width, height });
  // ports stay at the border: they hang on an unseen node above or below everything, by heavy edges
  for (const [end, ids] of [["in", ins], ["out", outs]]) {
    if (ids.length) graph.setNode(end, { width: 1, height: 1 });
    for (const id of ids) {
      graph.setNode(`${end} ${id}`, { width: 6, height: 1 });
      const [a, b] = end === "in" ? [end, `in ${id}`] : [`out ${id}`, end];
      graph.setEdge(a, b, { weight: 20, minlen: 1, width: 0, height: 0 }, "port");
    }
  }
  edges.forEach(([a, b, width, height], i) => {
    const weight = a.startsWith("in") || b.startsWith("out") ? 1 : 2;
    graph.setEdge(a, b, { width, height, labelpos: "c", minlen: 1, weight }, `e${i}`);
  });
  arrange(graph);
  const routes = edges.map(([a, b], i) => graph.edge(a, b, `e${i}`));
  const box = bounds(graph, nodes, routes);
  const [dx, dy] = [PAD - box.left, HEAD + PAD / 2 - box.top];
  const corners = nodes.map(([id, width, height]) => [graph.node(id).x - width / 2 + dx, graph.node(id).y - height / 2 + dy]);
  const ports = {};
  for (const id of ins) ports[`in ${id}`] = graph.node(`in ${id}`).x + dx;
  for (const id of outs) ports[`out ${id}`] = graph.node(`out ${id}`).x + dx;
  return {
    corners, ports, width: box.right - box.left + 2 * PAD, height: box.bottom - box.top + HEAD + PAD * 1.5,
    edges: routes.map((edge) => ({ points: edge.points.map(({ x, y }) => [x + dx, y + dy]), x: edge.x + dx, y: edge.y + dy })),
  };
}

function bounds(graph, nodes, routes) {
  const boxes = nodes.map(([id, width, height]) => ({ ...graph.node(id), width, height }));
  const labels = routes.filter((edge) => edge.width);
  const all = [...boxes, ...labels];
  const across = [...all.flatMap(({ x, width }) => [x - width / 2, x + width / 2]), ...routes.flatMap((edge) => edge.points.map(({ x }) => x))];
  const down = all.flatMap(({ y, height }) => [y - height / 2, y + height / 2]);
  return { left: Math.min(...across), right: Math.max(...across), top: Math.min(...down), bottom: Math.max(...down) };
}

/** An edge of a cluster, tied to the ports of the boxes that it leaves and enters. */
function route(cluster, link, edge) {
  const points = [...edge.points];
  const id = link.source.id;
  if (!link.a) points[0] = [cluster.ins.get(id).x, 0];
  else if (link.a.children) points[0] = [link.a.x + link.a.outs.get(id).x, link.a.y + link.a.height];
  if (!link.b) points[points.length - 1] = [cluster.outs.get(id).x, cluster.height];
  else if (link.b.children) points[points.length - 1] = [link.b.x + link.b.ins.get(id).x, link.b.y];
  return { points, lines: link.lines, x: edge.x, y: edge.y, arrow: Boolean(link.b) && !link.b.children, full: [...link.dims].join("\n") };
}
