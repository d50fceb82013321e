/** Checkpoints of a run: which are kept, which are taken up again, and what is passed over. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { UserError } from "../../model/errors.ts";
import { gpt2Defaults } from "../../model/gpt2_config.ts";
import { loadTokenizer } from "../../model/tokenizer.ts";
import type { Learner } from "../../train/learner.ts";
import { findCheckpoint, pruneCheckpoints, restore, saveCheckpoint, type TrainerState } from "../../train/state.ts";
import { createConsole } from "../../train/console.ts";
import { openFakeLearner } from "./fake_learner.ts";
import { checkpoints, settings, SMALL } from "./runs.ts";

const { config } = await settings(...SMALL);
const tokenizer = await loadTokenizer("bytes");

function open(seed: number, initialize = true): Promise<Learner> {
  const size = { vocab_size: tokenizer.vocabSize, n_positions: 16, n_layer: 1, n_head: 1, n_embd: 8 };
  const console = createConsole({ print: () => {} });
  return openFakeLearner({ config: { ...config, seed }, model: { ...gpt2Defaults, ...size }, initialize, console });
}

function state(step: number, heldOutLoss: number | null): TrainerState {
  const hashes = { tokenizerHash: tokenizer.hash, dataHash: "d" };
  return {
    version: 1,
    step,
    tokens: step,
    heldOutLoss,
    bestLoss: heldOutLoss,
    lossScaling: null,
    config,
    ...hashes,
  };
}

async function save(run: string, step: number, loss: number | null = null): Promise<string> {
  return await saveCheckpoint(run, await open(step), tokenizer, state(step, loss));
}

Deno.test("weights, moments and place come back with the same bits", async () => {
  const run = await Deno.makeTempDir();
  const learner = await open(3);
  const moment = learner.tensors("expAvg")[0];
  const values = (await moment.read()).map((_, i) => Math.fround(Math.sin(i) * 1e-7));
  learner.load("expAvg", moment.name, values);
  const folder = await saveCheckpoint(run, learner, tokenizer, state(7, 4.25));
  const found = await findCheckpoint(run, assert.fail);
  assert.deepEqual(found, { folder, state: state(7, 4.25) });
  const back = await open(3, false);
  await restore(back, found!);
  for (const kind of ["parameter", "expAvg", "expAvgSq"] as const) {
    for (const [i, tensor] of learner.tensors(kind).entries()) {
      assert.deepEqual(await back.tensors(kind)[i].read(), await tensor.read(), tensor.name);
    }
  }
  await Deno.remove(run, { recursive: true });
});

Deno.test("the newest checkpoints and the best one are kept", async () => {
  const run = await Deno.makeTempDir();
  const losses = [5, 3, 4, null, 4.5, 4.4];
  for (const [i, loss] of losses.entries()) {
    await save(run, (i + 1) * 10, loss);
    await pruneCheckpoints(run, 2);
  }
  assert.deepEqual(await checkpoints(run), ["latest", "step-000020", "step-000050", "step-000060"]);
  await pruneCheckpoints(run, 1);
  assert.deepEqual(await checkpoints(run), ["latest", "step-000020", "step-000060"]);
  await Deno.remove(run, { recursive: true });
});

Deno.test("what a killed writer or remover left goes away, and is never taken for a checkpoint", async () => {
  const run = await Deno.makeTempDir();
  await save(run, 10);
  await Deno.mkdir(join(run, "checkpoints", "step-000020.tmp-1234"));
  await Deno.mkdir(join(run, "checkpoints", "step-000005.tmp-removed"));
  assert.equal((await findCheckpoint(run, assert.fail))?.state.step, 10);
  await pruneCheckpoints(run, 1);
  assert.deepEqual(await checkpoints(run), ["latest", "step-000010"]);
  await Deno.remove(run, { recursive: true });
});

Deno.test("a damaged newest checkpoint is passed over with a warning; with none whole there is an error", async () => {
  for (const file of ["model.safetensors", "optimizer.safetensors", "trainer_state.json", "config.json"]) {
    const run = await Deno.makeTempDir();
    await save(run, 10);
    const path = join(await save(run, 20), file);
    await Deno.truncate(path, (await Deno.stat(path)).size - 9);
    const warnings: string[] = [];
    const found = await findCheckpoint(run, (line) => warnings.push(line));
    assert.equal(found?.state.step, 10, file);
    assert.equal(warnings.length, 1);
    assert.match(warnings[0], new RegExp(`passing over .*step-000020: .*${file}`));
    await Deno.remove(join(run, "checkpoints", "step-000010", file));
    await assert.rejects(findCheckpoint(run, () => {}), (error) => {
      return error instanceof UserError && /none of its 2 checkpoints is whole/.test(error.message);
    });
    await Deno.remove(run, { recursive: true });
  }
});

Deno.test("a run without checkpoints has none; moments of another model are no checkpoint", async () => {
  const run = await Deno.makeTempDir();
  assert.equal(await findCheckpoint(run, assert.fail), undefined);
  const first = await save(run, 10);
  const second = await save(run, 20);
  await Deno.copyFile(join(first, "model.safetensors"), join(second, "optimizer.safetensors"));
  const warnings: string[] = [];
  assert.equal((await findCheckpoint(run, (line) => warnings.push(line)))?.state.step, 10);
  assert.match(warnings[0], /exp_avg is missing or of another shape/);
  await Deno.remove(run, { recursive: true });
});
