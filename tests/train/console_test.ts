/** What a run prints, on a terminal and elsewhere; samples and their cutting. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { createConsole, printable } from "../../train/console.ts";
import { cutSamples } from "../../train/sample.ts";

Deno.test("on a terminal the status line is rewritten and never left behind", () => {
  let said = "";
  const console = createConsole({ terminal: true, print: (text) => said += text });
  console.status("step 1");
  console.line("held-out");
  console.write("sam");
  console.write("ple\n");
  assert.equal(said, "\r\x1b[2Kstep 1\r\x1b[2Kheld-out\nsample\n");
});

Deno.test("elsewhere the first status is a line, and others only every few seconds", () => {
  let said = "";
  const console = createConsole({ terminal: false, print: (text) => said += text });
  console.status("step 1");
  console.status("step 2");
  console.line("held-out");
  assert.equal(said, "step 1\nheld-out\n");
});

Deno.test("a model's text can't command the terminal", () => {
  assert.equal(printable("a\x1b[2Jb\n\tc\r\x9b1mé"), "a�[2Jb\n\tc��1mé");
});

Deno.test("samples of updates after the checkpoint are cut", async () => {
  const folder = await Deno.makeTempDir();
  const path = join(folder, "samples.txt");
  await cutSamples(folder, 3);
  const [a, b] = ["=== step 5 ===\none\n\n", "=== step 10 ===\ntwo\n\n"];
  await Deno.writeTextFile(path, a + b);
  await cutSamples(folder, 10);
  assert.equal(await Deno.readTextFile(path), a + b);
  await cutSamples(folder, 9);
  assert.equal(await Deno.readTextFile(path), a);
  await cutSamples(folder, 0);
  assert.equal(await Deno.readTextFile(path), "");
  await Deno.remove(folder, { recursive: true });
});
