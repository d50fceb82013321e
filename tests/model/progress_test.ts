/** The progress line: rewritten on a terminal, plain lines elsewhere. */
import assert from "node:assert/strict";
import { duration, megabytes, progress, type ProgressOptions } from "../../model/progress.ts";

function recorded(options: Partial<ProgressOptions>) {
  let text = "";
  const bar = progress({ label: "read", unit: "bytes", write: (part) => text += part, ...options });
  return { bar, text: () => text };
}

Deno.test("on a terminal one line is rewritten, and lines that stay stand above it", () => {
  const { bar, text } = recorded({ terminal: true, total: 2e6 });
  bar.update(1e6, "note");
  assert(text().startsWith("\r\x1b[2K"));
  assert.match(text().slice(5), /^read 50% \(1\.0 MB of 2\.0 MB\), [\d.]+ MB\/s, note, \d+ s left$/);
  bar.update(2e6);
  assert.equal(text().match(/read/g)!.length, 1, "ten times a second at most");
  bar.line("warning");
  bar.finish("done");
  assert(text().endsWith("\r\x1b[2Kwarning\n\r\x1b[2Kdone\n"));
});

Deno.test("elsewhere plain lines come every few seconds", async () => {
  const { bar, text } = recorded({ terminal: false, every: 0.05, unit: "rows", total: 1200, from: 200 });
  bar.update(250);
  assert.equal(text(), "");
  await new Promise((resolve) => setTimeout(resolve, 60));
  bar.update(1100);
  bar.update(1150);
  assert.match(text(), /^read 91% \(1,100 of 1,200 rows\), [\d,]+ rows\/s, 1 s left\n$/);
  bar.line("kept");
  bar.finish();
  assert(text().endsWith("left\nkept\n"));
});

Deno.test("without a total there is no time left", () => {
  const { bar, text } = recorded({ terminal: true, unit: "steps" });
  bar.update(3);
  assert.match(text(), /read 3 steps, [\d.,]+ steps\/s$/);
});

Deno.test("times and sizes are short", () => {
  assert.deepEqual([0.2, 59, 60, 200, 7500].map(duration), ["1 s", "59 s", "1 min 0 s", "3 min 20 s", "2 h 5 min"]);
  assert.equal(megabytes(12_345_678), "12.3 MB");
});
