/** Tuning for serving: an engine's calls are timed, kept, and found again. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { listCaches } from "../../kernels/gpu/tune_cache.ts";
import { tuneServing } from "../../serve/tune.ts";

const MODEL = fileURLToPath(new URL("../fixtures/gpt2-tiny", import.meta.url));

Deno.test("an engine's kernels are tuned once", async () => {
  const folder = await Deno.makeTempDir();
  const before = Deno.env.get("WGPT_CACHE");
  Deno.env.set("WGPT_CACHE", folder);
  try {
    const lines: string[] = [];
    const tune = (seconds: number) => tuneServing(MODEL, { again: false, seconds, say: (line) => lines.push(line) });
    await tune(3);
    assert.match(lines[0], /^tuning kernel 1 of \d+, 3 s left: /);
    assert.match(lines.at(-1)!, /^tuned \d+ kernels in \d+ s; /);
    const [{ winners }] = listCaches(folder);
    assert.ok(Object.keys(winners).some((call) => call.includes(" kept")), Object.keys(winners).join("\n"));
  } finally {
    if (before === undefined) Deno.env.delete("WGPT_CACHE");
    else Deno.env.set("WGPT_CACHE", before);
    await Deno.remove(folder, { recursive: true });
  }
});
