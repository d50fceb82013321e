/** Mixed precision: gradients against the f64 reference that rounds what the kernels round, loss scaling, copies, memory. */
import assert from "node:assert/strict";
import { createModel } from "../../model/load.ts";
import type { Model } from "../../model/model.ts";
import { type Gpt2Config, gpt2Defaults } from "../../model/gpt2_config.ts";
import type { DenseBatch } from "../../model/batch.ts";
import { fromF32, toF32 } from "../../model/float_formats.ts";
import { createAdamW } from "../../train/optimizer.ts";
import type { LossScaling, Precision } from "../../train/precision.ts";
import { compileStep, type Step } from "../../train/step.ts";
import { testDevice } from "../harness.ts";
import { gpt2Mixed } from "../reference/gpt2_mixed.ts";

const config: Gpt2Config = {
  ...gpt2Defaults,
  vocab_size: 61,
  n_positions: 24,
  n_embd: 32,
  n_head: 2,
  n_layer: 1,
  embd_pdrop: 0,
  attn_pdrop: 0,
  resid_pdrop: 0,
  initializer_range: 0.15,
};
const optimizer = { beta1: 0.9, beta2: 0.98, eps: 1e-9, weightDecay: 0.01, clip: 1 };
const documents = [17, 24, 5].map((length, d) => ({
  tokens: Array.from({ length }, (_, i) => (i * i * 7 + 31 * d + 3) % 61),
  targets: Array.from({ length }, (_, i) => (i * 29 + 53 * d + 7 * i * i) % 61),
}));
const batch: DenseBatch = {
  tokens: Uint32Array.from(documents.flatMap(({ tokens }) => tokens)),
  targets: Int32Array.from(documents.flatMap(({ targets }) => targets)),
  positions: Uint32Array.from(documents.flatMap(({ tokens }) => tokens.map((_, i) => i))),
  starts: Uint32Array.from(documents.flatMap(({ tokens }, d) => tokens.map(() => [0, 17, 41][d]))),
  validTargets: 46,
};

/** Half a unit in the last place of 1. */
const ROUNDOFF = { bf16: 2 ** -9, f16: 2 ** -12 } as const;
const ROUND = {
  f32: (value: number) => value,
  bf16: (value: number) => toF32({ dtype: "BF16", data: fromF32(Float32Array.of(value), "BF16") })[0],
  f16: (value: number) => toF32({ dtype: "F16", data: fromF32(Float32Array.of(value), "F16") })[0],
} as const;

async function withStep<T>(precision: Precision, body: (step: Step, model: Model) => Promise<T>): Promise<T> {
  using model = createModel(await testDevice(), config, { seed: 3 });
  using step = await compileStep(model, { rows: 46, optimizer, dropout: false, precision });
  return await body(step, model);
}

function learn(step: Step, options: { update?: number; scale?: number; learningRate?: number } = {}): void {
  const { update = 1, scale = 1 / 46, learningRate = 1e-2 } = options;
  step.microstep(batch, { scale, seed: 0, update, firstRow: 0 });
  step.update({ learningRate, update });
}

/** ‖a - b‖ / ‖b‖. */
function distance(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let [difference, length] = [0, 0];
  for (let i = 0; i < b.length; i++) {
    difference += (a[i] - b[i]) ** 2;
    length += b[i] ** 2;
  }
  return Math.sqrt(difference / length);
}

for (const precision of ["bf16", "f16"] as const) {
  Deno.test(`${precision}: gradients are those of the f64 reference with its operands rounded`, async () => {
    await withStep(precision, async (step, model) => {
      const parameters = await model.parameters();
      step.microstep(batch, { scale: 1 / 46, seed: 0, update: 1, firstRow: 0 });
      const lossScale = (await step.lossScaling())?.scale ?? 1;
      const expected = gpt2Mixed(config, parameters, documents, { round: ROUND[precision], lossScale });
      const exact = gpt2Mixed(config, parameters, documents, { round: ROUND.f32, lossScale });
      // Sums in f32 differ in their last bits, and where one stands near a tie its rounding falls the other way. All such
      // together stay below one rounding of everything, 2u; gradients that aren't rounded as the kernels do it don't.
      const allowed = 2 * ROUNDOFF[precision];
      let rounded = 0;
      for (const parameter of model.declared) {
        const gradient = (await model.read(parameter, "gradient/")).map((value) => value / lossScale);
        const used = distance(gradient, expected.gradients.get(parameter.name)!) / allowed;
        assert.ok(used < 1, `${parameter.name}: ${used} of what is allowed`);
        rounded = Math.max(rounded, distance(gradient, exact.gradients.get(parameter.name)!));
      }
      assert.ok(rounded > allowed, `nothing was rounded: ${rounded} from the exact gradients`);
      step.update({ learningRate: 0, update: 1 });
      const { loss } = await step.report();
      assert.ok(Math.abs(loss - expected.loss) < allowed * expected.loss, `${loss}, expected ${expected.loss}`);
    });
  });

  Deno.test(`${precision}: masters are f32, and products read fresh copies after updates and loading`, async () => {
    await withStep(precision, async (step, model) => {
      const before = await step.evaluate(batch);
      const saved = await model.parameters();
      learn(step);
      const after = await step.evaluate(batch);
      assert.ok(after.loss < before.loss - 0.1, `${after.loss} after ${before.loss}`);
      const masters = [...(await model.parameters()).values()].flatMap((values) => [...values]);
      assert.ok(masters.some((value) => value !== ROUND[precision](value)), "masters aren't rounded");
      for (const [name, values] of saved) step.load("parameter", name, values);
      assert.deepEqual(await step.evaluate(batch), before);
    });
  });
}

Deno.test("f16: an update that overflows is left out, and the scale recovers", async () => {
  await withStep("f16", async (step, model) => {
    const before = await model.parameters();
    // 2^30 · 1/46 in the last gradients is far past f16's 65504.
    step.loadLossScaling({ scale: 2 ** 30, streak: 1000, applied: 0, skipped: 0 });
    learn(step);
    const first = await step.report();
    assert.ok(!Number.isFinite(first.gradNorm));
    assert.deepEqual(first.lossScaling, { scale: 2 ** 29, streak: 0, applied: 0, skipped: 1 });
    assert.deepEqual(await model.parameters(), before);
    for (const { read } of step.tensors("expAvg")) assert.ok((await read()).every((value) => value === 0));
    let report = first;
    let updates = 1;
    for (; !Number.isFinite(report.gradNorm) && updates < 40; updates++) {
      learn(step, { update: updates + 1 });
      report = await step.report();
    }
    const { scale, applied, skipped } = report.lossScaling!;
    assert.equal(applied, 1);
    assert.equal(skipped, updates - 1);
    assert.equal(scale, 2 ** (30 - skipped));
    assert.notDeepEqual(await model.parameters(), before);
    const losses = [report.loss];
    for (let i = 0; i < 5; i++) {
      learn(step, { update: updates + i + 1 });
      losses.push((await step.report()).loss);
    }
    assert.ok(losses[5] < losses[0] - 0.5, losses.join());
    assert.ok(Math.abs(first.loss - losses[0]) < 1e-5, "an overflow in the gradient doesn't touch the loss");
  });
});

Deno.test("f16: updates left out don't count for bias correction", async () => {
  const trained = (overflow: boolean) =>
    withStep("f16", async (step, model) => {
      if (overflow) {
        step.loadLossScaling({ scale: 131072, streak: 0, applied: 0, skipped: 0 });
        learn(step, { scale: Infinity });
      }
      for (let i = 1; i <= 3; i++) learn(step, { update: overflow ? i + 1 : i });
      return await model.parameters();
    });
  assert.deepEqual(await trained(true), await trained(false));
});

Deno.test("f16: the scale doubles after 2000 good updates in a row", async () => {
  await withStep("f16", async (step) => {
    step.loadLossScaling({ scale: 1024, streak: 1998, applied: 5000, skipped: 3 });
    const seen: LossScaling[] = [];
    for (let i = 0; i < 3; i++) {
      learn(step, { learningRate: 1e-4 });
      seen.push((await step.report()).lossScaling!);
    }
    assert.deepEqual(seen.map(({ scale, streak, applied }) => [scale, streak, applied]), [
      [1024, 1999, 5001],
      [2048, 0, 5002],
      [2048, 1, 5003],
    ]);
    assert.deepEqual(await step.lossScaling(), seen[2]);
  });
});

Deno.test("f32 and bf16 have no loss scale", async () => {
  for (const precision of ["f32", "bf16"] as const) {
    await withStep(precision, async (step) => {
      learn(step);
      assert.equal("lossScaling" in await step.report(), false);
      assert.equal(await step.lossScaling(), null);
    });
  }
});

Deno.test("the library's AdamW learns in each precision, and reports the scale of f16", async () => {
  for (const precision of ["f32", "bf16", "f16"] as const) {
    using model = createModel(await testDevice(), config, { seed: 4 });
    using adam = createAdamW(model, { lr: 1e-2, clip: 1, precision });
    const step = () => adam.step([documents[1].tokens], [documents[1].targets]);
    const first = await step();
    for (let i = 0; i < 8; i++) await step();
    const last = await step();
    assert.ok(last.loss < first.loss - 1, `${precision}: ${first.loss} to ${last.loss}`);
    assert.deepEqual(last.lossScaling?.applied, precision === "f16" ? 10 : undefined);
  }
});
