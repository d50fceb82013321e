/** What a run is said to hold and do before it begins, against what a device then holds. */
import assert from "node:assert/strict";
import { openDevice } from "../../kernels/gpu/device.ts";
import { defaultSampling } from "../../model/generate.ts";
import { type Gpt2Config, gpt2Defaults } from "../../model/gpt2_config.ts";
import { createModel } from "../../model/load.ts";
import { PlainGenerator } from "../../model/plain_generator.ts";
import { shapeOf } from "../../model/shape.ts";
import { footprint, formatMemory } from "../../train/footprint.ts";
import type { StepOptions } from "../../train/graphs.ts";
import { compileStep } from "../../train/step.ts";
import { testDevice } from "../harness.ts";

const config: Gpt2Config = {
  ...gpt2Defaults,
  vocab_size: 1000,
  n_positions: 64,
  n_embd: 128,
  n_head: 2,
  n_layer: 3,
  embd_pdrop: 0.1,
  attn_pdrop: 0.1,
  resid_pdrop: 0.1,
};
const ROWS = 128;
const options: StepOptions = {
  rows: ROWS,
  optimizer: { beta1: 0.9, beta2: 0.98, eps: 1e-9, weightDecay: 0.01, clip: 1 },
  dropout: true,
};
const batch = {
  tokens: new Uint32Array(ROWS),
  targets: new Int32Array(ROWS),
  positions: Uint32Array.from({ length: ROWS }, (_, row) => row % 64),
  starts: Uint32Array.from({ length: ROWS }, (_, row) => row - row % 64),
  validTargets: ROWS,
};

/** Bytes that a device holds after everything a run does. */
async function held(options: StepOptions): Promise<number> {
  using device = await openDevice();
  using model = createModel(device, config, { seed: 1 });
  using step = await compileStep(model, options);
  step.microstep(batch, { scale: 1 / ROWS, seed: 1, update: 1, firstRow: 0 });
  step.update({ learningRate: 1e-3, update: 1 });
  await step.report();
  await step.evaluate(batch);
  await using generator = new PlainGenerator(model, { workspace: step.workspace });
  for await (const _ of generator.generate(Uint32Array.of(1), { ...defaultSampling, maxTokens: 1 }));
  return device.bytes;
}

Deno.test("a run holds what was planned without a device, whatever its precision and what it recomputes", async () => {
  const { capabilities } = await testDevice();
  for (const [precision, recompute] of [["f32", "none"], ["f32", "attention"], ["f16", "block"]] as const) {
    const chosen = { ...options, precision, recompute };
    const { total, memory } = await footprint(shapeOf(config), chosen, capabilities);
    assert.equal(await held(chosen), total, `${precision}, recompute ${recompute}`);
    assert.equal(Object.values(memory).reduce((sum, bytes) => sum + bytes, 0), total);
  }
});

Deno.test("weights, gradients, moments and work are those that a GPT-2 of this size has by its formula", async () => {
  const { capabilities } = await testDevice();
  const shape = shapeOf({ ...config, embd_pdrop: 0, attn_pdrop: 0, resid_pdrop: 0 });
  const { memory, microstep } = await footprint(shape, { ...options, dropout: false }, capabilities);
  const elements = shape.declared.map(({ padded }) => padded.reduce((product, size) => product * size, 1));
  const bytes = elements.reduce((sum, count) => sum + Math.ceil(count * 4 / 256) * 256, 0);
  assert.deepEqual([memory.weights, memory.gradients, memory.moments, memory.copies], [bytes, bytes, 2 * bytes, 0]);
  const { n_embd: C, n_layer: L } = config;
  const products = 3 * 2 * ROWS * (L * 12 * C * C + 1024 * C);
  assert.ok(microstep.flops > products && microstep.flops < 1.2 * products, `${microstep.flops} for ${products}`);
  const seconds = microstep.seconds({ flops: 1e9, bytes: Infinity });
  assert.ok(Math.abs(seconds - microstep.flops / 1e9) < 1e-9);
  assert.ok(microstep.seconds({ flops: 1e9, bytes: 1e6 }) > seconds);
});

Deno.test("a footprint prints as a table, without what isn't there", async () => {
  const { capabilities } = await testDevice();
  const table = formatMemory(await footprint(shapeOf(config), options, capabilities));
  assert.match(table, /^memory +MB\n {2}weights +[\d.,]+\n {2}gradients +[\d.,]+\n {2}moments +[\d.,]+\n/);
  assert.match(table, / {2}activations +[\d.,]+\n {2}workspace +[\d.,]+\n {2}inputs +[\d.,]+\n {2}total +[\d.,]+$/);
  assert.ok(!table.includes("copies"));
});
