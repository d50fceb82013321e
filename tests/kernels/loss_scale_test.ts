/** Loss scaling over whole trajectories against the f64 reference: growth, overflow, recovery, bias correction. */
import assert from "node:assert/strict";
import { Graph } from "../../kernels/gpu/graph.ts";
import { compile } from "../../kernels/gpu/program.ts";
import { createStore } from "../../kernels/gpu/store.ts";
import { unscale } from "../../kernels/loss_scale.ts";
import { assertClose } from "../close.ts";
import { testDevice } from "../harness.ts";
import { type LossScaleState, unscaleReference } from "../reference/loss_scale.ts";

const OPTIONS = { maxNorm: 1, beta1: 0.9, beta2: 0.999, growthInterval: 3 };
// Roots, quotients and exponentials of a few units each.
const FEW_ROUNDINGS = { atol: 1e-37, rtol: 2 ** -20 };

async function trajectory(
  squares: readonly number[],
  from: LossScaleState,
  options = OPTIONS,
): Promise<LossScaleState> {
  const device = await testDevice();
  using store = createStore(device);
  store.allocate("loss scale", [
    { name: "scale", shape: [1], dtype: "f32" },
    { name: "counts", shape: [4], dtype: "f32" },
  ]);
  store.write("scale", Float32Array.of(from.scale));
  store.write("counts", Float32Array.of(from.streak, from.applied, from.skipped, 0));
  const graph = new Graph();
  const [squared, loss, rate] = ["squared", "loss", "rate"].map((name) => graph.input(name, [1]));
  const outputs = unscale(squared, loss, rate, graph.variable("scale", [1]), graph.variable("counts", [4]), options);
  using program = await compile(device, graph, { ...outputs }, store);
  let state = from;
  for (const [i, value] of squares.entries()) {
    const inputs = { squared: Math.fround(value), loss: 4.5 * state.scale, learningRate: Math.fround(1e-3 / (i + 1)) };
    program.run({
      squared: Float32Array.of(inputs.squared),
      loss: Float32Array.of(inputs.loss),
      rate: Float32Array.of(inputs.learningRate),
    });
    const expected = unscaleReference(inputs, state, options);
    const names = ["loss", "clip", "hyper", "scale", "counts"];
    const read = (await program.read(...names)).map((buffer) => new Float32Array(buffer));
    assertClose(read[0], [expected.loss], { atol: 0, rtol: 0 }, `update ${i}, loss`);
    assertClose(read[1], expected.clip, FEW_ROUNDINGS, `update ${i}, clip`);
    assertClose(read[2], expected.hyper, FEW_ROUNDINGS, `update ${i}, hyper`);
    state = expected.state;
    assert.deepEqual([...read[3], ...read[4]], [state.scale, state.streak, state.applied, state.skipped, 0]);
  }
  return state;
}

const START = { scale: 65536, streak: 0, applied: 0, skipped: 0 };

Deno.test("the scale doubles after good updates in a row, halves at each overflow, and recovers", async () => {
  const end = await trajectory([1e9, 4, 1e12, Infinity, NaN, 1e3, Infinity, 1, 1, 1, 1, 1e30, 1, 1], START);
  assert.deepEqual(end, { scale: 65536, streak: 1, applied: 11, skipped: 3 });
});

Deno.test("the scale doesn't fall below 1", async () => {
  const end = await trajectory([Infinity, Infinity, Infinity], { ...START, scale: 2 });
  assert.deepEqual(end, { scale: 1, streak: 0, applied: 0, skipped: 3 });
});

Deno.test("bias correction is right from the first update to the hundred thousandth", async () => {
  for (const applied of [0, 1, 4, 10, 100, 499, 500, 1000, 7000, 100_000]) {
    await trajectory([1], { ...START, applied });
    await trajectory([1], { ...START, applied }, { ...OPTIONS, beta1: 0, beta2: 0.98 });
  }
});

Deno.test("unscaling refuses what doesn't fit", () => {
  const graph = new Graph();
  const [one, four] = [graph.input("one", [1]), graph.input("four", [4])];
  assert.throws(() => unscale(four, one, one, one, four, OPTIONS), /Cannot unscale with \(4\) f32, \(1\) f32/);
  assert.throws(() => unscale(one, one, one, one, four, { ...OPTIONS, maxNorm: 0 }), /Cannot unscale to norm 0/);
});
