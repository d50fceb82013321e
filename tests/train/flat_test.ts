/** Long training stands still in memory: nothing is made on the device once a step's programs stand. */
import assert from "node:assert/strict";
import { type Gpt2Config, gpt2Defaults } from "../../model/gpt2_config.ts";
import { createModel } from "../../model/load.ts";
import { compileStep } from "../../train/step.ts";
import { testDevice } from "../harness.ts";

const config: Gpt2Config = { ...gpt2Defaults, vocab_size: 64, n_positions: 16, n_embd: 16, n_head: 2, n_layer: 1 };
const ROWS = 16;
const batch = {
  tokens: Uint32Array.from({ length: ROWS }, (_, row) => row * 7 % 64),
  targets: Int32Array.from({ length: ROWS }, (_, row) => row * 5 % 64),
  positions: Uint32Array.from({ length: ROWS }, (_, row) => row),
  starts: new Uint32Array(ROWS),
  validTargets: ROWS,
};

/** Whatever a device is asked to make besides encoders. */
const MAKERS = [
  "createBuffer",
  "createTexture",
  "createBindGroup",
  "createComputePipeline",
  "createShaderModule",
] as const;

Deno.test("300 steps make no buffer, texture, bind group or pipeline that the first didn't", async () => {
  const device = await testDevice();
  using model = createModel(device, config, { seed: 1 });
  const optimizer = { beta1: 0.9, beta2: 0.98, eps: 1e-9, weightDecay: 0.01, clip: 1 };
  using step = await compileStep(model, { rows: ROWS, optimizer, dropout: true });
  const run = async (update: number) => {
    step.microstep(batch, { scale: 1 / ROWS, seed: 1, update, firstRow: 0 });
    step.update({ learningRate: 1e-3, update });
    if (update % 10 !== 1) return;
    await step.report();
    await step.evaluate(batch);
  };
  await run(1);
  const bytes = device.bytes;
  const made: string[] = [];
  const gpu = device.gpu as unknown as Record<string, (...args: unknown[]) => unknown>;
  for (const name of MAKERS) {
    gpu[name] = (...args) => {
      made.push(name);
      return Reflect.apply(Reflect.get(GPUDevice.prototype, name), device.gpu, args);
    };
  }
  try {
    for (let update = 2; update <= 300; update++) await run(update);
  } finally {
    for (const name of MAKERS) delete gpu[name];
  }
  assert.deepEqual(made, []);
  assert.equal(device.bytes, bytes);
});
