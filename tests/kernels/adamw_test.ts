/** AdamW against torch's steps in f64, over shapes and bindings of all kinds. */
import assert from "node:assert/strict";
import { adamw } from "../../kernels/adamw.ts";
import { Graph } from "../../kernels/gpu/graph.ts";
import { compile } from "../../kernels/gpu/program.ts";
import { createStore } from "../../kernels/gpu/store.ts";
import { assertClose } from "../close.ts";
import { randomF32, testDevice } from "../harness.ts";
import { adamwReference, type AdamWSettings } from "../reference/adamw.ts";
import { bindingLimit, runGraph, type RunOptions } from "./run_graph.ts";

const SETTINGS: AdamWSettings = { beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0.1 };
const NAMES = ["parameter", "exp_avg", "exp_avg_sq"] as const;
const OUTPUTS = [...NAMES, "cleared"];

interface State {
  readonly parameter: Float32Array;
  readonly exp_avg: Float32Array;
  readonly exp_avg_sq: Float32Array;
}

function hyperOf(t: number, learningRate: number, { beta1, beta2 }: AdamWSettings): Float32Array {
  return Float32Array.of(learningRate, 1 - beta1 ** t, Math.sqrt(1 - beta2 ** t), 0);
}

/** One step, from a state given as inputs. */
async function step(
  shape: readonly number[],
  state: State,
  gradient: Float32Array,
  [hyper, clip]: readonly Float32Array[],
  options?: RunOptions,
): Promise<State> {
  const result = await runGraph(
    (graph) => {
      const [parameter, expAvg, expAvgSq, g] = [...NAMES, "gradient"].map((name) => graph.input(name, shape));
      const constants = [graph.input("hyper", [4]), graph.input("clip", [4])] as const;
      const outputs = adamw(parameter, g, expAvg, expAvgSq, ...constants, SETTINGS);
      return Object.fromEntries(OUTPUTS.map((name, i) => [name, outputs[i]]));
    },
    { ...state, gradient, hyper, clip },
    options,
  );
  const [parameter, exp_avg, exp_avg_sq, cleared] = OUTPUTS.map((name) => new Float32Array(result[name]));
  assert.ok(cleared.every((value) => value === 0));
  return { parameter, exp_avg, exp_avg_sq };
}

/**
 * A step rounds the parameter twice, and moves it by at most a learning rate known to about ten roundings; moments gather
 * three roundings a step, which their decay bounds by thirty.
 */
function stepping(steps: number, learningRate: number) {
  return { atol: steps * (2 * 2 ** -24 + 10 * 2 ** -24 * learningRate), rtol: 0 };
}

const MOMENT = { atol: 1e-12, rtol: 30 * 2 ** -24 };

Deno.test("ten steps are torch's, over ragged counts, with variables in the store", async () => {
  const device = await testDevice();
  for (
    const [count, settings] of [
      [1, SETTINGS],
      [67, { ...SETTINGS, weightDecay: 0 }],
      [260, { beta1: 0.8, beta2: 0.95, eps: 1e-6, weightDecay: 0.01 }],
      [1028, SETTINGS],
    ] as const
  ) {
    using store = createStore(device);
    for (const name of NAMES) store.allocate(name, [{ name, shape: [count], dtype: "f32" }]);
    const graph = new Graph();
    const [parameter, expAvg, expAvgSq] = NAMES.map((name) => graph.variable(name, [count]));
    const [hyper, clip] = [graph.input("hyper", [4]), graph.input("clip", [4])];
    adamw(parameter, graph.input("gradient", [count]), expAvg, expAvgSq, hyper, clip, settings);
    using program = await compile(device, graph, {}, store);
    const start = randomF32(count, 1);
    store.write("parameter", start);
    const zeros = () => new Float64Array(count);
    const truth = { parameter: Float64Array.from(start), expAvg: zeros(), expAvgSq: zeros() };
    const stored = async (name: string) => new Float32Array(await store.read(name));
    for (let t = 1; t <= 10; t++) {
      const learningRate = 0.01 / t;
      const coefficient = t % 3 === 0 ? Math.fround(0.37) : 1;
      // From nothing to large, some exactly 0.
      const gradient = randomF32(count, 10 + t, 10 ** (t % 4 - 2)).map((value, i) => i % 13 === 5 ? 0 : value);
      program.run({ gradient, hyper: hyperOf(t, learningRate, settings), clip: Float32Array.of(coefficient, 9, 1, 0) });
      adamwReference(truth, gradient.map((value) => value * coefficient), settings, t, learningRate);
      assertClose(await stored("parameter"), truth.parameter, stepping(t, 0.01), `parameter, step ${t}`);
    }
    assertClose(await stored("exp_avg"), truth.expAvg, { ...MOMENT, atol: 1e-6 }, "first moment");
    assertClose(await stored("exp_avg_sq"), truth.expAvgSq, MOMENT, "second moment");
  }
});

function stateOf(count: number): State {
  return {
    parameter: randomF32(count, 1),
    exp_avg: randomF32(count, 2, 0.1),
    exp_avg_sq: randomF32(count, 3, 0.1).map(Math.abs),
  };
}

Deno.test("a norm that isn't finite changes nothing", async () => {
  const state = stateOf(70);
  const gradient = new Float32Array(70).fill(Infinity);
  gradient[3] = NaN;
  for (const norm of [Infinity, NaN]) {
    const after = await step([70], state, gradient, [hyperOf(3, 0.1, SETTINGS), Float32Array.of(0, norm, 0, 0)]);
    assert.deepEqual(after, state);
  }
});

Deno.test("more elements than a grid's first dimension holds, and more than a binding", async () => {
  const constants = [hyperOf(4, 0.01, SETTINGS), Float32Array.of(0.5, 2, 1, 0)];
  for (const [shape, options] of [[[2_097_155], {}], [[301, 37], { change: bindingLimit(2 ** 14) }]] as const) {
    const count = shape.reduce((product, n) => product * n, 1);
    const state = stateOf(count);
    const gradient = randomF32(count, 4);
    const truth = {
      parameter: Float64Array.from(state.parameter),
      expAvg: Float64Array.from(state.exp_avg),
      expAvgSq: Float64Array.from(state.exp_avg_sq),
    };
    adamwReference(truth, gradient.map((value) => value * 0.5), SETTINGS, 4, 0.01);
    const after = await step(shape, state, gradient, constants, options);
    // Where the second moment is near 0 the step is many learning rates long, and its rounding with it.
    assertClose(after.parameter, truth.parameter, { atol: 1e-6, rtol: 1e-6 }, "parameter");
    assertClose(after.exp_avg, truth.expAvg, { ...MOMENT, atol: 1e-7 }, "first moment");
    assertClose(after.exp_avg_sq, truth.expAvgSq, MOMENT, "second moment");
  }
});

Deno.test("AdamW refuses what doesn't fit", () => {
  const graph = new Graph();
  const [p, g, m, v] = ["p", "g", "m", "v"].map((name) => graph.input(name, [2, 3]));
  const [hyper, clip, flat] = [graph.input("h", [4]), graph.input("c", [4]), graph.input("f", [6])];
  assert.throws(() => adamw(p, flat, m, v, hyper, clip, SETTINGS), {
    name: "RangeError",
    message: /Cannot update \(2, 3\) f32 with \(6\) f32: want f32 of one shape/,
  });
  assert.throws(() => adamw(p, g, m, graph.input("i", [2, 3], "i32"), hyper, clip, SETTINGS), /with \(2, 3\) i32/);
  assert.throws(() => adamw(p, g, m, v, hyper, graph.input("d", [2]), SETTINGS), /\(4\) f32 and \(2\) f32: want \(4\)/);
});
