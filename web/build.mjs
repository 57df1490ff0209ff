// Builds dialoom/report/static out of src/: one script, one style, the licences of what is in them, and a note of which
// sources they were built from, by their hashes. tests/test_report.py holds the note against the files.
import { createHash } from "node:crypto";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const out = new URL("../dialoom/report/static/", import.meta.url);
const here = new URL("./", import.meta.url);
const read = (name) => readFileSync(new URL(name, here), "utf8");
const sha256 = (text) => createHash("sha256").update(text).digest("hex");

const result = await build({
  absWorkingDir: here.pathname,
  entryPoints: { viewer: "src/main.jsx" },
  outdir: "out",
  write: false,
  bundle: true,
  minify: true,
  charset: "utf8",
  target: ["es2022", "chrome111", "firefox115", "safari16.4"],
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "none",
});

const inside = ["preact", "@preact/signals", "@preact/signals-core"];
const licences = inside.map((name) => {
  const { version, license } = JSON.parse(read(`node_modules/${name}/package.json`));
  return `${name} ${version} (${license})\n\n${read(`node_modules/${name}/LICENSE`).trim()}\n`;
}).join(`\n${"-".repeat(80)}\n\n`);
writeFileSync(new URL("LICENSES.txt", out), licences);

const bundles = {};
for (const file of result.outputFiles) {
  const name = file.path.split("/").at(-1);
  // inside an inline <script> or <style> nothing may end it or open a comment
  if (/<\/(script|style)|<!--/i.test(file.text)) throw new Error(`${name} would end its own element`);
  const held = name.endsWith(".js") ? `/*\n${licences}*/\n` : "";   // the licences go where the code goes
  const text = `${held}${file.text.trim()}\n`;
  writeFileSync(new URL(name, out), text);
  bundles[name] = sha256(text);
}

const names = ["build.mjs", "package.json", "package-lock.json", ...readdirSync(new URL("src/", here)).sort()
  .map((name) => `src/${name}`)];
const sources = Object.fromEntries(names.map((name) => [name, sha256(read(name))]));
writeFileSync(new URL("build.json", out), `${JSON.stringify({ sources, bundles }, null, 1)}\n`);
console.log(Object.entries(bundles).map(([name]) => name).join(", "), "written;",
  result.outputFiles.reduce((sum, file) => sum + file.contents.length, 0), "bytes");
