/** Kernels of a run: looked up at its start, written in its folder, the same when it goes on. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { describeCall, fingerprint, fingerprintOfAll } from "../../kernels/gpu/choices.ts";
import { openDevice } from "../../kernels/gpu/device.ts";
import { TuneCache } from "../../kernels/gpu/tune_cache.ts";
import { gpt2Defaults } from "../../model/gpt2_config.ts";
import { Model } from "../../model/model.ts";
import { openLearner } from "../../train/gpu_learner.ts";
import { readKernels } from "../../train/kernels.ts";
import { compileStep } from "../../train/step.ts";
import { bits, makeData, runTraining } from "./runs.ts";

const CONTEXT = 32;
const MICRO_BATCH = 3;
const FLAGS = [
  ...["--context", `${CONTEXT}`, "--n-layer", "1", "--n-head", "2", "--n-embd", "32", "--dropout", "0.1"],
  ...["--micro-batch", `${MICRO_BATCH}`, "--batch-tokens", "0", "--steps", "6", "--learning-rate", "0.01"],
  ...["--eval-every", "0", "--eval-batches", "1", "--sample-every", "0", "--sample-tokens", "2"],
  ...["--checkpoint-every", "0", "--sample-prompt", "The", "--tune-seconds", "0"],
];

/** A cache in which every call's second candidate won, so that nothing hangs on a clock. */
async function forgeCache(folder: string): Promise<number> {
  using device = await openDevice();
  const cache = new TuneCache(device, folder, assert.fail);
  let winners = 0;
  device.chooser = {
    choose: (offers) =>
      Promise.resolve(offers.map(({ call, candidates }) => {
        if (candidates.length < 2) return 0;
        const winner = fingerprint(call, candidates[1]);
        const offered = fingerprintOfAll({ call, candidates });
        const times = { tried: candidates.length, milliseconds: 1, defaultMilliseconds: 2, flops: 1, bytes: 1 };
        cache.put(describeCall(call), { winner, offered, kernel: "forged", ...times });
        winners++;
        return 1;
      })),
  };
  const dropout = { embd_pdrop: 0.1, attn_pdrop: 0.1, resid_pdrop: 0.1 };
  const size = { n_layer: 1, n_head: 2, n_embd: 32, n_positions: CONTEXT, vocab_size: 257 };
  using model = new Model(device, { ...gpt2Defaults, ...size, ...dropout });
  const optimizer = { beta1: 0.9, beta2: 0.99, eps: 1e-8, weightDecay: 0.1, clip: 1 };
  using _step = await compileStep(model, { rows: MICRO_BATCH * CONTEXT, optimizer, dropout: true, recompute: "none" });
  return winners;
}

Deno.test("a run stopped and resumed with tuned kernels equals an undisturbed one", async () => {
  const root = await Deno.makeTempDir();
  const [data, cache] = [join(root, "data"), join(root, "cache")];
  await makeData(data, { context: CONTEXT, repeat: 8 });
  assert.ok(await forgeCache(cache) > 5);
  const before = Deno.env.get("WGPT_CACHE");
  Deno.env.set("WGPT_CACHE", cache);
  try {
    const flags = (run: string, ...more: string[]) => [...FLAGS, "--data", data, "--out", join(root, run), ...more];
    await runTraining(flags("whole"), { openLearner });
    await runTraining(flags("plain", "--tune", "off"), { openLearner });
    const [whole, plain] = [await bits(join(root, "whole"), 6), await bits(join(root, "plain"), 6)];
    assert.notEqual(whole, plain); // else what follows would prove nothing

    await runTraining(flags("stopped"), { openLearner, stopAt: /^step 3\// });
    const kernels = await readKernels(join(root, "stopped"));
    await Deno.remove(cache, { recursive: true });
    const said = await runTraining(["--out", join(root, "stopped"), "--resume"], { openLearner });
    assert.equal(await bits(join(root, "stopped"), 6), whole);
    assert.deepEqual(await readKernels(join(root, "stopped")), kernels);
    assert.doesNotMatch(said, /warning/);
  } finally {
    if (before === undefined) Deno.env.delete("WGPT_CACHE");
    else Deno.env.set("WGPT_CACHE", before);
    await Deno.remove(root, { recursive: true });
  }
});

Deno.test("recorded kernels that are gone are one warning, and the run goes on", async () => {
  const root = await Deno.makeTempDir();
  const data = join(root, "data");
  await makeData(data, { context: CONTEXT, repeat: 8 });
  const run = join(root, "run");
  await runTraining([...FLAGS, "--tune", "off", "--data", data, "--out", run, "--steps", "2"], { openLearner });
  const kernels = (await readKernels(run))!;
  const [first, second] = Object.keys(kernels).filter((call) => call.startsWith("matmul"));
  const changed = { ...kernels, [first]: "0123456789abcdef", [second]: "0123456789abcdef" };
  await Deno.writeTextFile(join(run, "kernels.json"), JSON.stringify(changed));
  const said = await runTraining(["--out", run, "--resume", "--steps", "3"], { openLearner });
  assert.match(said, new RegExp(`warning: 2 of this run's ${Object.keys(kernels).length} kernels are gone \\(first: `));
  assert.equal(said.match(/warning/g)!.length, 1);
  assert.deepEqual(await readKernels(run), kernels);

  await Deno.writeTextFile(join(run, "kernels.json"), "[1]");
  await assert.rejects(runTraining(["--out", run, "--resume", "--steps", "4"], { openLearner }), {
    name: "UserError",
    message: /Cannot use .*kernels\.json: it isn't a list of kernels; remove it/,
  });
  await Deno.remove(root, { recursive: true });
});
