/** The unigram reference against counting by hand, and the held-out loss over the same rows every time. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { openHeldOut } from "../../train/held_out.ts";
import { readManifest } from "../../train/manifest.ts";
import { Shard } from "../../train/shards.ts";
import { unigramEntropy } from "../../train/unigram.ts";
import { makeData, settings, SMALL } from "./runs.ts";

Deno.test("the unigram entropy is that of counts with one added, padding left out", async () => {
  const folder = await Deno.makeTempDir();
  await makeData(folder);
  const manifest = await readManifest(folder);
  const tokens = (split: "train" | "validation") => {
    using shard = new Shard(join(folder, manifest.splits[split].shards[0].file));
    return [...shard.rows(0, shard.header.rows)].slice(0, shard.header.tokens);
  };
  const seen = tokens("train");
  const count = (token: number) => 1 + seen.filter((other) => other === token).length;
  const total = seen.length + manifest.vocabSize;
  const heldOut = tokens("validation");
  const expected = heldOut.reduce((sum, token) => sum - Math.log(count(token) / total), 0) / heldOut.length;
  assert.ok(Math.abs(unigramEntropy(folder, manifest) - expected) < 1e-9);
  await Deno.remove(folder, { recursive: true });
});

Deno.test("the held-out loss is a mean over targets, over all rows or always the same ones", async () => {
  const folder = await Deno.makeTempDir();
  await makeData(folder);
  const rows = (await readManifest(folder)).splits.validation.rows;
  for (const evalBatches of [0, 2]) {
    const { config } = await settings(...SMALL, "--eval-batches", `${evalBatches}`);
    const seen: string[] = [];
    const learner = {
      evaluate({ tokens, validTargets }: { tokens: Uint32Array; validTargets: number }) {
        seen.push(tokens.join());
        return Promise.resolve({ loss: validTargets * seen.length, targets: validTargets });
      },
    };
    using heldOut = await openHeldOut(folder, config);
    const loss = await heldOut.measure(learner);
    const count = seen.length;
    assert.equal(count, evalBatches || Math.ceil(rows / config.microBatch));
    assert.ok(loss >= 1 && loss <= count);
    await heldOut.measure(learner);
    assert.deepEqual(seen.slice(0, count), seen.slice(count));
  }
  await Deno.remove(folder, { recursive: true });
});
