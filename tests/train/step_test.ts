/** A training step on the GPU: what it must learn, and what must not change its numbers. */
import assert from "node:assert/strict";
import { type Gpt2Config, gpt2Defaults } from "../../model/gpt2_config.ts";
import type { DenseBatch } from "../../model/batch.ts";
import { createModel } from "../../model/load.ts";
import type { Model } from "../../model/model.ts";
import { shapeOf } from "../../model/shape.ts";
import { footprint } from "../../train/footprint.ts";
import { createAdamW } from "../../train/optimizer.ts";
import { compileStep, type Step, type StepOptions } from "../../train/step.ts";
import { assertClose } from "../close.ts";
import { testDevice } from "../harness.ts";

const config: Gpt2Config = {
  ...gpt2Defaults,
  vocab_size: 101,
  n_positions: 48,
  n_embd: 64,
  n_head: 2,
  n_layer: 2,
  embd_pdrop: 0,
  attn_pdrop: 0,
  resid_pdrop: 0,
};
const optimizer = { beta1: 0.9, beta2: 0.98, eps: 1e-9, weightDecay: 0.01, clip: 1 };
const dropping = { ...config, embd_pdrop: 0.1, attn_pdrop: 0.2, resid_pdrop: 0.15 };

/** Documents packed one after another, each at positions from 0. */
function pack(lengths: readonly number[], seed: number): DenseBatch {
  const tokens: number[] = [];
  const positions: number[] = [];
  const starts: number[] = [];
  for (const length of lengths) {
    const start = tokens.length;
    for (let position = 0; position < length; position++) {
      tokens.push((seed * 31 + start * 17 + position * position * 7 + 3) % config.vocab_size);
      positions.push(position);
      starts.push(start);
    }
  }
  const targets = Int32Array.from(
    tokens,
    (token, row) => (row + 1) % 11 === 0 ? -100 : (token * 5 + 2) % config.vocab_size,
  );
  return {
    tokens: Uint32Array.from(tokens),
    targets,
    positions: Uint32Array.from(positions),
    starts: Uint32Array.from(starts),
    validTargets: targets.filter((target) => target >= 0).length,
  };
}

/** Rows `from` to `to` of a batch, at whose start a document starts. */
function cut(batch: DenseBatch, from: number, to: number): DenseBatch {
  const targets = batch.targets.slice(from, to);
  return {
    tokens: batch.tokens.slice(from, to),
    targets,
    positions: batch.positions.slice(from, to),
    starts: batch.starts.slice(from, to).map((start) => start - from),
    validTargets: targets.filter((target) => target >= 0).length,
  };
}

async function withStep<T>(
  options: Partial<StepOptions> & { rows: number },
  body: (step: Step, model: Model) => Promise<T>,
  shape = config,
): Promise<T> {
  using model = createModel(await testDevice(), shape, { seed: 3 });
  using step = await compileStep(model, { optimizer, dropout: false, ...options });
  return await body(step, model);
}

/** Updates on the same batch, cut into microbatches; the last report and all weights. */
async function train(
  batch: DenseBatch,
  cuts: readonly number[],
  options: Partial<StepOptions> = {},
  shape = config,
): Promise<{ losses: number[]; weights: Float32Array }> {
  const borders = [0, ...cuts, batch.tokens.length];
  return await withStep({ rows: batch.tokens.length, ...options }, async (step, model) => {
    const losses: number[] = [];
    for (let update = 1; update <= 3; update++) {
      for (let i = 0; i + 1 < borders.length; i++) {
        const part = cut(batch, borders[i], borders[i + 1]);
        await step.prepare(part.tokens.length);
        step.microstep(part, { scale: 1 / batch.validTargets, seed: 7, update, firstRow: borders[i] });
      }
      step.update({ learningRate: 1e-2, update });
      losses.push((await step.report()).loss);
    }
    const weights = [...(await model.parameters()).values()].flatMap((values) => [...values]);
    return { losses, weights: Float32Array.from(weights) };
  }, shape);
}

// Three updates of AdamW: a gradient's rounding can turn into a share of a learning rate of 1e-2 where it is near zero.
const TRAJECTORY = { atol: 2e-3, rtol: 1e-3 };
const LOSSES = { atol: 2e-5, rtol: 2e-5 };
const batch = pack([40, 1, 23, 32], 1);

Deno.test("one batch is learned by heart", async () => {
  const rows = [[...batch.tokens.subarray(0, 40)], [...batch.tokens.subarray(41, 81)]];
  // A random text's next token is a function of all before it.
  const targets = rows.map((row, r) => row.map((_, i) => (i * 29 + r * 53 + 7 * i * i) % config.vocab_size));
  using model = createModel(await testDevice(), config, { seed: 4 });
  using adam = createAdamW(model, { lr: 3e-3, betas: [0.9, 0.98], eps: 1e-9, weightDecay: 0.01, clip: 1 });
  let loss = Infinity;
  const first = (await adam.step(rows, targets)).loss;
  for (let step = 0; step < 150 && loss >= 0.05; step++) loss = (await adam.step(rows, targets)).loss;
  assert.ok(Math.abs(first - Math.log(config.vocab_size)) < 0.3, `the first loss ${first} is no uniform guess`);
  assert.ok(loss < 0.05, `the loss is still ${loss}`);
});

Deno.test("accumulated microsteps are one batch", async () => {
  const whole = await train(batch, []);
  const parts = await train(batch, [41, 64]);
  assertClose(parts.losses, whole.losses, LOSSES, "losses");
  assertClose(parts.weights, whole.weights, TRAJECTORY, "weights");
});

Deno.test("dropout depends on the row's place in the update, not on the microbatch", async () => {
  const whole = await train(batch, [], { dropout: true }, dropping);
  const parts = await train(batch, [41, 64], { dropout: true }, dropping);
  assertClose(parts.losses, whole.losses, LOSSES, "losses");
  const without = await train(batch, [], { dropout: false }, dropping);
  assert.ok(Math.abs(without.losses[0] - whole.losses[0]) > 1e-4, "nothing was dropped");
});

Deno.test("packed documents have the losses they have alone", async () => {
  const alone = await withStep({ rows: batch.tokens.length }, async (step) => {
    let loss = 0;
    for (const [from, to] of [[0, 40], [40, 41], [41, 64], [64, 96]]) {
      const one = cut(batch, from, to);
      await step.prepare(one.tokens.length);
      step.microstep(one, { scale: 1, seed: 0, update: 1, firstRow: 0 });
      step.update({ learningRate: 0, update: 1 });
      loss += (await step.report()).loss;
    }
    return loss;
  });
  const packed = await withStep({ rows: batch.tokens.length }, (step) => step.evaluate(batch));
  assertClose([packed.loss], [alone], { atol: 1e-4, rtol: 1e-5 }, "loss");
  assert.equal(packed.targets, batch.validTargets);
});

Deno.test("the same seed gives the same bits", async () => {
  const [one, two] = [
    await train(batch, [41], { dropout: true }, dropping),
    await train(batch, [41], { dropout: true }, dropping),
  ];
  assert.deepEqual(one, two);
});

Deno.test("what is recomputed has the same bits and holds less memory", async () => {
  const { capabilities } = await testDevice();
  const shape = shapeOf({ ...dropping, n_layer: 6 });
  const held: number[] = [];
  const kept = await train(batch, [], { dropout: true }, dropping);
  for (const recompute of ["none", "attention", "block"] as const) {
    const again = await train(batch, [], { dropout: true, recompute }, dropping);
    assert.deepEqual(again, kept, recompute);
    const options = { rows: 768, optimizer, dropout: true, recompute };
    held.push((await footprint(shape, options, capabilities)).memory.activations);
  }
  assert.ok(held[1] < 0.75 * held[0] && held[2] < 0.4 * held[1], `${held} bytes of none, attention, block`);
});

Deno.test("a gradient that isn't finite changes nothing", async () => {
  await withStep({ rows: batch.tokens.length }, async (step, model) => {
    const before = await model.parameters();
    step.microstep(batch, { scale: Infinity, seed: 0, update: 1, firstRow: 0 });
    step.update({ learningRate: 0.1, update: 1 });
    const { gradNorm } = await step.report();
    assert.ok(!Number.isFinite(gradNorm));
    assert.deepEqual(await model.parameters(), before);
    step.microstep(batch, { scale: 1 / batch.validTargets, seed: 0, update: 1, firstRow: 0 });
    step.update({ learningRate: 0.1, update: 1 });
    assert.ok(Number.isFinite((await step.report()).gradNorm));
    assert.notDeepEqual(await model.parameters(), before);
  });
});

Deno.test("padding rows of the vocabulary stay zero", async () => {
  await withStep({ rows: batch.tokens.length }, async (step, model) => {
    step.microstep(batch, { scale: 1 / batch.validTargets, seed: 0, update: 1, firstRow: 0 });
    step.update({ learningRate: 0.1, update: 1 });
    const table = new Float32Array(await model.store.read("transformer.wte.weight"));
    assert.equal(table.length, 128 * config.n_embd);
    assert.ok(table.subarray(config.vocab_size * config.n_embd).every((value) => value === 0));
  });
});

Deno.test("moments can be read, written and named wrongly", async () => {
  await withStep({ rows: batch.tokens.length }, async (step) => {
    const [first] = step.tensors("expAvg");
    const data = Float32Array.from({ length: first.shape.reduce((a, b) => a * b, 1) }, (_, i) => i);
    step.load("expAvg", first.name, data);
    assert.deepEqual(await first.read(), data);
    assert.throws(() => step.load("expAvg", "nothing", data), /Cannot load nothing/);
    await assert.rejects(async () =>
      await step.microstep(cut(batch, 0, 40), { scale: 1, seed: 0, update: 1, firstRow: 0 })
    );
  });
});
