// Writes ../bundle: for each page the minified program, its style, the page around them; and the licences of all inside.
import { build } from "esbuild";
import { copyFile, readFile, readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";

const out = "../bundle";
const pages = { page: ["src/main.js", "src/page.css", "src/page.html"], report: ["src/report/main.js", "src/report/report.css", "src/report/report.html"] };
const packages = new Set();
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
  for (const [input, { bytesInOutput }] of Object.entries(Object.values(made.metafile.outputs)[0].inputs)) {
    const found = bytesInOutput > 0 && /^node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(input);
    if (found) packages.add(found[1]);
  }
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
