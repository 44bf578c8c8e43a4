// Writes ../bundle: the minified program, its style, the page around them, and the licences of what is inside.
import { build } from "esbuild";
import { copyFile, readFile, readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";

const out = "../bundle";
const made = await build({
  entryPoints: ["src/main.js"],
  bundle: true,
  minify: true,
  format: "iife",
  target: "es2022",
  charset: "utf8",
  legalComments: "none", // they stand in LICENSES.txt, whole
  metafile: true,
  write: false,
});
const program = made.outputFiles[0].text;
if (/<\/script|<!--/i.test(program)) throw new Error("the program would end its own script element");
await writeFile(join(out, "page.js"), program);
const style = await build({ entryPoints: ["src/page.css"], minify: true, write: false });
await writeFile(join(out, "page.css"), style.outputFiles[0].text);
await copyFile("src/page.html", join(out, "page.html"));

const packages = new Set();
for (const input of Object.keys(made.metafile.inputs)) {
  const found = /^node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(input);
  if (found) packages.add(found[1]);
}
const texts = [];
for (const name of [...packages].sort()) {
  const folder = join("node_modules", name);
  const { version, license } = JSON.parse(await readFile(join(folder, "package.json"), "utf8"));
  const file = (await readdir(folder)).find((one) => /^licen[sc]e/i.test(one));
  if (!file) throw new Error(`${name} comes without its licence`);
  texts.push(`${name} ${version} (${license})\n\n${(await readFile(join(folder, file), "utf8")).trim()}\n`);
}
await writeFile(join(out, "LICENSES.txt"), texts.join(`\n${"-".repeat(80)}\n\n`));
