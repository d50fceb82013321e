/** Pointwise ops and dropout against f64, with their gradients. */
import assert from "node:assert/strict";
import { differentiate } from "../../kernels/gpu/grad.ts";
import { Graph, type Tensor } from "../../kernels/gpu/graph.ts";
import { add, dropout, gelu, type GeluForm, multiply, scale, silu } from "../../kernels/pointwise.ts";
import { assertClose } from "../close.ts";
import { checkOp, randomF32 } from "../harness.ts";
import { dropoutFactors, gelu as geluReference, silu as siluReference } from "../reference/pointwise.ts";
import { bindingLimit, runGraph } from "./run_graph.ts";

/** One or two roundings of f32. */
const ROUNDING = { atol: 1e-7, rtol: 2 ** -22 };
/**
 * Activations: the function is a few roundings off (2^-24 of numbers up to 1, each enlarged by |x| ≤ 6), so are slopes;
 * central differences in f64 are good to 1e-8.
 */
const ACTIVATION = { atol: 2e-6, rtol: 2 ** -21 };

/** Past a workgroup's 64 invocations by vectors of four and by single elements. */
const SHAPES = [[9, 36], [13, 11], [1, 1], [67, 4]];

const size = ([rows, columns]: readonly number[]) => rows * columns;

Deno.test("sums, products and multiples, with their gradients", async () => {
  for (const shape of SHAPES) {
    const [a, b] = [1, 2].map((seed) => ({ shape, data: randomF32(size(shape), seed, 3) }));
    await checkOp({
      ...ROUNDING,
      inputs: [a, b],
      build: (_, [a, b]) => [add(a, b), multiply(a, b), scale(a, -0.3)],
      reference: (
        [a, b],
      ) => [a.map((x, i) => x + b[i]), a.map((x, i) => x * b[i]), a.map((x) => x * Math.fround(-0.3))],
      gradients: { atol: 1e-6, rtol: 1e-6 },
    });
  }
});

Deno.test("a tensor times itself", async () => {
  await checkOp({
    ...ROUNDING,
    inputs: [{ shape: [5, 7], data: randomF32(35, 3) }],
    build: (_, [x]) => multiply(x, x),
    reference: ([x]) => x.map((value) => value * value),
    gradients: { atol: 1e-6, rtol: 1e-6 },
  });
});

for (const form of ["tanh", "erf"] as const) {
  Deno.test(`GELU by ${form}`, async () => {
    for (const shape of SHAPES) {
      await checkOp({
        ...ACTIVATION,
        inputs: [{ shape, data: randomF32(size(shape), 4, 6) }],
        build: (_, [x]) => gelu(x, form),
        reference: ([x]) => x.map((value) => geluReference(value, form)),
      });
    }
  });
}

Deno.test("SiLU", async () => {
  for (const shape of SHAPES) {
    await checkOp({
      ...ACTIVATION,
      inputs: [{ shape, data: randomF32(size(shape), 5, 8) }],
      build: (_, [x]) => silu(x),
      reference: ([x]) => x.map(siluReference),
    });
  }
});

/** Values and slopes at some points. */
async function valuesAndSlopes(build: (x: Tensor) => Tensor, points: readonly number[]) {
  const { y, dx } = await runGraph((graph: Graph) => {
    const x = graph.input("x", [points.length]);
    const y = build(x);
    const [dx] = differentiate([{ tensor: y, gradient: graph.input("dy", [points.length]) }], [x]);
    return { y, dx };
  }, { x: Float32Array.from(points), dy: new Float32Array(points.length).fill(1) });
  return { values: new Float32Array(y), slopes: new Float32Array(dx) };
}

Deno.test("activations far from 0 are x or 0, their slopes 1 or 0, never NaN", async () => {
  const points = [12, 15, 31, 100, 1e4, 1e13, 1e19, 1e20, 3e38];
  const both = [...points.map((x) => -x), ...points];
  for (
    const [name, build] of [
      ["tanh", (x: Tensor) => gelu(x, "tanh")],
      ["erf", (x: Tensor) => gelu(x, "erf")],
      ["silu", silu],
    ] as const
  ) {
    const { values, slopes } = await valuesAndSlopes(build, both);
    // SiLU's tail at -12 is -7.4e-5, its slope there -6.8e-5.
    const expected = both.map((x) => name === "silu" && Math.abs(x) < 100 ? siluReference(x) : Math.max(0, x));
    assertClose(values, expected, { atol: 1e-6, rtol: 1e-6 }, name);
    assertClose(slopes, both.map((x) => x < 0 ? 0 : 1), { atol: 1e-4, rtol: 0 }, `${name}'s slope`);
  }
});

Deno.test("activations near 0 keep their relative precision", async () => {
  const points = [0, 1e-30, -1e-20, 1e-8, -1e-4];
  for (const form of ["tanh", "erf"] satisfies GeluForm[]) {
    const { values, slopes } = await valuesAndSlopes((x) => gelu(x, form), points);
    assertClose(values, points.map((x) => geluReference(x, form)), { atol: 1e-37, rtol: 1e-6 });
    assertClose(slopes, points.map((x) => 0.5 + x * 2 * 0.3989422804), { atol: 1e-6, rtol: 0 });
  }
  const { values } = await valuesAndSlopes(silu, points);
  assertClose(values, points.map(siluReference), { atol: 1e-37, rtol: 1e-6 });
});

Deno.test("dropout: the mask is Philox's of seed, update, row and site, forward and backward", async () => {
  const counter = Uint32Array.of(0xdeadbeef, 41, 1000, 0);
  for (const shape of [[9, 36], [13, 11], [70, 1], [5, 258]]) {
    for (const rate of [0.1, 0.5]) {
      await checkOp({
        ...ROUNDING,
        inputs: [{ shape, data: randomF32(size(shape), 6, 2) }, { shape: [4], data: counter }],
        build: (_, [x, counter]) => dropout(x, rate, 5, counter),
        reference: ([x, counter]) => {
          const factors = dropoutFactors(shape, rate, 5, counter);
          return x.map((value, i) => value * factors[i]);
        },
        gradients: { atol: 1e-6, rtol: 1e-6 },
      });
    }
  }
});

/** Which elements of ones survive. */
async function survivors(shape: readonly number[], rate: number, site: number, counter: number[], change?: boolean) {
  const build = (graph: Graph) => ({
    y: dropout(graph.input("x", shape), rate, site, graph.input("counter", [4], "u32")),
  });
  const data = { x: new Float32Array(size(shape)).fill(1), counter: Uint32Array.from(counter) };
  return new Float32Array((await runGraph(build, data, { change: change ? bindingLimit(32768) : undefined })).y);
}

Deno.test("dropout's masks: rates, independence, and rows counted over the update", async () => {
  const shape = [200, 101];
  const first = await survivors(shape, 0.3, 1, [1, 2, 0, 0]);
  for (
    const [site, counter, same] of [[1, [1, 2, 0, 0], true], [2, [1, 2, 0, 0], false], [1, [1, 3, 0, 0], false], [
      1,
      [2, 2, 0, 0],
      false,
    ]] as const
  ) {
    const other = await survivors(shape, 0.3, site, [...counter]);
    const alike = other.filter((value, i) => value === first[i]).length / other.length;
    // Two independent masks agree with probability 0.58; four standard errors of 20,200 are 0.014.
    assert.ok(same ? alike === 1 : Math.abs(alike - 0.58) < 0.014, `${alike} alike`);
    const dropped = other.filter((value) => value === 0).length / other.length;
    assert.ok(Math.abs(dropped - 0.3) < 4 * Math.sqrt(0.21 / other.length), `${dropped} dropped`);
  }
  const later = await survivors([60, 101], 0.3, 1, [1, 2, 140, 0]);
  assert.deepEqual(later, first.subarray(140 * 101));
  assert.deepEqual(await survivors(shape, 0.3, 1, [1, 2, 0, 0], true), first, "by slices of rows");
  assert.ok((await survivors([4, 8], 0, 1, [1, 2, 0, 0])).every((value) => value === 1));
});

Deno.test("more elements than a grid's first dimension holds, and more than a binding", async () => {
  const rows = 700_003;
  const x = randomF32(rows * 3, 7);
  const build = (graph: Graph) => ({ y: scale(graph.input("x", [rows, 3]), 2) });
  const { y } = await runGraph(build, { x });
  const doubled = new Float32Array(y);
  assert.ok(doubled.every((value, i) => value === 2 * x[i]));
  const sliced = await runGraph(
    (graph) => {
      const [a, b] = [graph.input("a", [100, 7]), graph.input("b", [100, 7])];
      return { y: add(a, b) };
    },
    { a: x.subarray(0, 700), b: x.subarray(700, 1400) },
    { change: bindingLimit(2048) },
  );
  assert.ok(new Float32Array(sliced.y).every((value, i) => value === Math.fround(x[i] + x[700 + i])));
});

Deno.test("pointwise ops refuse what doesn't fit", () => {
  const graph = new Graph();
  const [a, b, ids] = [graph.input("a", [2, 3]), graph.input("b", [3, 2]), graph.input("i", [2, 3], "u32")];
  const counter = graph.input("c", [4], "u32");
  assert.throws(() => add(a, b), { name: "RangeError", message: /Cannot add \(2, 3\) f32 and \(3, 2\) f32/ });
  assert.throws(() => multiply(a, ids), /Cannot multiply \(2, 3\) f32 and \(2, 3\) u32/);
  assert.throws(() => gelu(ids, "erf"), /Cannot gelu \(2, 3\) u32/);
  assert.throws(() => dropout(a, 1, 0, counter), /rate 1: want 0 ≤ rate < 1/);
  assert.throws(() => dropout(a, 0.1, 0, a), /counter \(2, 3\) f32: want \(4\) u32/);
  assert.throws(() => dropout(graph.input("v", [6]), 0.1, 0, counter), /Cannot drop from \(6\) f32: want \(N, C\)/);
});
