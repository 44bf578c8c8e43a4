// Writes ../bundle: for each page the minified program, its style, the page around them; and the licences of all inside.
import { build } from "esbuild";
import { copyFile, readFile, readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";

const out = "../bundle";
const pages = { page: ["src/main.js", "src/page.css", "src/page.html"], report: ["src/report/main.js", "src/report/report.css", "src/report/report.html"] };
const packages = new Set();
const met = new Set(); // by the bundler, whether anything of it was used or not
const packageOf = (path) => /^node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path)?.[1];
const described = async (name) => JSON.parse(await readFile(join("node_modules", name, "package.json"), "utf8"));
for (const [name, [program, style, template]] of Object.entries(pages)) {
  const made = await build({
    entryPoints: [program],
    bundle: true,
    minify: true,
    format: "iife",
    target: "es2022",
    charset: "utf8",
    legalComments: "none", // they stand in LICENSES.txt, whole
    metafile: true,
    write: false,
  });
  const text = made.outputFiles[0].text;
  if (/<\/script|<!--/i.test(text)) throw new Error(`the program of ${name} would end its own script element`);
  await writeFile(join(out, `${name}.js`), text);
  const styled = await build({ entryPoints: [style], minify: true, write: false });
  await writeFile(join(out, `${name}.css`), styled.outputFiles[0].text);
  await copyFile(template, join(out, `${name}.html`));
  for (const input of Object.keys(made.metafile.inputs)) met.add(packageOf(input));
  for (const [input, { bytesInOutput }] of Object.entries(Object.values(made.metafile.outputs)[0].inputs)) {
    if (bytesInOutput > 0 && packageOf(input)) packages.add(packageOf(input));
  }
}
// a dependency that was never met was built into the package that needs it: its licence belongs here as well
for (const name of packages) {
  for (const inner of Object.keys((await described(name)).dependencies ?? {})) if (!met.has(inner)) packages.add(inner);
}

const texts = [];
for (const name of [...packages].sort()) {
  const folder = join("node_modules", name);
  const { version, license } = await described(name);
  const file = (await readdir(folder)).find((one) => /^licen[sc]e/i.test(one));
  if (!file) throw new Error(`${name} comes without its licence`);
  texts.push(`${name} ${version} (${license})\n\n${(await readFile(join(folder, file), "utf8")).trim()}\n`);
}
await writeFile(join(out, "LICENSES.txt"), texts.join(`\n${"-".repeat(80)}\n\n`));
