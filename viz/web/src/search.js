// Search by module, parameter, operator or group.
import { isOp } from "./model.js";
import { tag } from "./panel.js";

const MOST = 40;

export function addSearch(scene, act) {
  const entries = [];
  for (const item of scene.items.values()) {
    if (!isOp(item) && item.kind !== "fold" && item.kind !== "line" && item.path) entries.push(["module", item.path, () => act("item", item)]);
  }
  scene.tensors.forEach((tensor, i) => entries.push([tensor.kind, tensor.name, () => act("tensor", i)]));
  for (const group of scene.groups) entries.push(["group", `${group.label} ${group.name}`, () => act("group", group)]);
  for (const op of scene.ops) entries.push(["operator", op.name, () => act("op", op.name)]);
  const folded = entries.map(([, name]) => name.toLowerCase());
  const results = tag("ul", { id: "results" });
  const input = tag("input", { type: "search", placeholder: "search modules, parameters, groups", "aria-label": "search" });
  const find = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const hits = [];
    for (let i = 0; words.length && i < entries.length && hits.length < MOST; i += 1) {
      if (words.every((word) => folded[i].includes(word))) hits.push(entries[i]);
    }
    const rows = hits.map(([kind, name, go]) => tag("li", {}, tag("button", { class: "plain", onclick: go }, name, tag("span", { class: "muted" }, ` ${kind}`))));
    if (words.length && !rows.length) rows.push(tag("li", { class: "muted" }, "nothing by that name"));
    results.replaceChildren(...rows);
    return hits;
  };
  input.addEventListener("input", find);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter") find()[0]?.[2]();
    if (event.key === "ArrowDown") results.querySelector("button")?.focus();
    event.stopPropagation();
    if (event.key === "Escape") {
      input.value = "";
      find();
      input.blur();
    }
  });
  document.getElementById("search").append(input, results);
  return input;
}
