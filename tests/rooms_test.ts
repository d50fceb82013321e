/** The house rules that a compiler can't see: which room imports which, and which words belong where. */
import assert from "node:assert/strict";
import { dirname, join, normalize, relative } from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = normalize(join(dirname(fileURLToPath(import.meta.url)), ".."));

/** What each room may import, besides itself. */
const ALLOWED: Readonly<Record<string, readonly string[]>> = {
  "kernels/gpu": [],
  kernels: ["kernels/gpu"],
  model: ["kernels", "kernels/gpu"],
  train: ["kernels", "kernels/gpu", "model", "deno.json"],
  serve: ["kernels", "kernels/gpu", "model"],
  "mod.ts": ["kernels", "kernels/gpu", "model", "train", "serve"],
};

/** Words that only some files may say. */
const WORDS: readonly { readonly word: RegExp; readonly only: (file: string) => boolean }[] = [
  { word: /\bGPUDevice\b|\bnavigator\.gpu\b/, only: (file) => file.startsWith("kernels/gpu/") },
  { word: /@workgroup_size|@compute/, only: (file) => file.startsWith("kernels/") },
  { word: /from "hono|from "@hono/, only: (file) => file.startsWith("serve/") },
  { word: /from "hyparquet/, only: (file) => /^train\/prepare\w*\.ts$/.test(file) },
  { word: /from "@huggingface\/jinja"/, only: (file) => file === "serve/chat.ts" },
  { word: /\bDeno\.args\b|\bDeno\.exit\b/, only: (file) => /(^|\/)main\.ts$/.test(file) },
];

function files(folder: string): string[] {
  return [...Deno.readDirSync(join(ROOT, folder))].flatMap((entry) => {
    const path = join(folder, entry.name);
    if (entry.isDirectory) return files(path);
    return /\.(ts|wgsl)$/.test(entry.name) ? [path] : [];
  });
}

const sources = ["kernels", "model", "train", "serve"].flatMap(files).concat("mod.ts").map((file) => {
  const text = Deno.readTextFileSync(join(ROOT, file));
  return { file, text, code: text.replaceAll(/^\s*(\/\/|\*|\/\*).*$/gm, "") };
});

function roomOf(file: string): string {
  if (file.startsWith("kernels/gpu/")) return "kernels/gpu";
  return file.split("/")[0];
}

Deno.test("rooms import in one direction", () => {
  assert.ok(sources.length > 20);
  for (const { file, code } of sources) {
    for (const [, path] of code.matchAll(/(?:from|import\()\s*"(\.[^"]+)"/g)) {
      const target = roomOf(relative(ROOT, join(ROOT, dirname(file), path)));
      const room = roomOf(file);
      assert.ok(room === target || ALLOWED[room].includes(target), `${file} imports ${path}`);
    }
  }
});

Deno.test("words stay in their rooms", () => {
  for (const { file, code } of sources) {
    for (const { word, only } of WORDS) {
      if (!only(file)) assert.doesNotMatch(code, word, `${file} says what another room should`);
    }
  }
});

Deno.test("every file opens with what it is for", () => {
  for (const { file, text } of sources) assert.match(text, /^\/\*\*|^\/\//, `${file} has no opening comment`);
});
