/** The metrics file: what a killed run left of it, and what a resumed one keeps. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { UserError } from "../../model/errors.ts";
import type { MetricRecord } from "../../model/run_metrics.ts";
import { openMetrics, readMetrics } from "../../train/metrics.ts";

const update = (step: number): MetricRecord => ({
  kind: "update",
  step,
  loss: 5 - step / 10,
  gradNorm: 1,
  learningRate: 1e-3,
  tokensPerSecond: 100,
  tokens: step * 10,
});

Deno.test("records come back as they were appended", async () => {
  const folder = await Deno.makeTempDir();
  const path = join(folder, "metrics.jsonl");
  const records: MetricRecord[] = [
    { kind: "run", step: 0, unigramEntropy: 6, parameters: 10, device: "d" },
    update(1),
    { kind: "evaluation", step: 1, loss: 4.5 },
  ];
  {
    using metrics = await openMetrics(path, 0);
    for (const record of records) metrics.append(record);
    assert.deepEqual(await readMetrics(path), records);
  }
  await Deno.remove(folder, { recursive: true });
});

Deno.test("a resumed run keeps the updates up to its checkpoint, whatever the last line looks like", async () => {
  const folder = await Deno.makeTempDir();
  const path = join(folder, "metrics.jsonl");
  const lines = [1, 2, 3, 4].map((step) => JSON.stringify(update(step)));
  const torn = lines[3].slice(0, 20);
  await Deno.writeTextFile(path, [...lines.slice(0, 3), torn].join("\n"));
  assert.deepEqual((await readMetrics(path)).map(({ step }) => step), [1, 2, 3]);
  {
    using metrics = await openMetrics(path, 2);
    metrics.append(update(3));
  }
  assert.equal(await Deno.readTextFile(path), lines.slice(0, 3).map((line) => `${line}\n`).join(""));
  {
    using _ = await openMetrics(path, 0);
  }
  assert.equal(await Deno.readTextFile(path), "");
  await Deno.remove(folder, { recursive: true });
});

Deno.test("a torn line before the last, a missing file and a full disk are named", async () => {
  const folder = await Deno.makeTempDir();
  const path = join(folder, "metrics.jsonl");
  await Deno.writeTextFile(path, `${JSON.stringify(update(1))}\n{"kind":\n${JSON.stringify(update(2))}\n`);
  const refused = (error: unknown) => error instanceof UserError && error.message.includes(path);
  await assert.rejects(readMetrics(path), (error) => refused(error) && /line 2 is no record/.test(String(error)));
  await assert.rejects(
    readMetrics(`${path}x`),
    (error) => error instanceof UserError && /No such file/.test(error.message),
  );
  await assert.rejects(openMetrics(join(path, "under"), 0), (error) => error instanceof UserError);
  await Deno.remove(folder, { recursive: true });
});
