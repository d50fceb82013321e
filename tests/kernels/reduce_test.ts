/** Sums, squared norms, scaling and clipping against f64, with their gradients. */
import assert from "node:assert/strict";
import { Graph } from "../../kernels/gpu/graph.ts";
import { clipCoefficient, scaleBy, sum, sumOfSquares } from "../../kernels/reduce.ts";
import { assertClose } from "../close.ts";
import { checkOp, randomF32 } from "../harness.ts";
import { clipReference, sumOfSquaresReference, sumReference } from "../reference/reduce.ts";
import { bindingLimit, runGraph } from "./run_graph.ts";

/** An element passes at most 128 additions in its lane, 12 in two trees, and the partial sums' share: each a rounding. */
function summing(size: number, largest: number) {
  return { atol: (150 + size / 8192 / 64) * 2 ** -24 * size * largest, rtol: 0 };
}

/** One element; less than a lane each; past a workgroup's block of 8192, whole quads or not. */
const SHAPES = [[1], [5], [3, 7, 4], [129, 64], [2, 8191], [3, 5461]];

const size = (shape: readonly number[]) => shape.reduce((product, n) => product * n, 1);

Deno.test("a sum and its gradient", async () => {
  for (const shape of SHAPES) {
    await checkOp({
      ...summing(size(shape), 2),
      inputs: [{ shape, data: randomF32(size(shape), 1, 2) }],
      build: (_, [x]) => sum(x),
      reference: ([x]) => Float64Array.of(sumReference(x)),
      gradients: { atol: 1e-6, rtol: 1e-6 },
    });
  }
});

Deno.test("a sum of squares over several tensors, and its gradients", async () => {
  for (const shapes of [SHAPES, SHAPES.toReversed(), [[4]], [[1], [1], [1]]]) {
    const all = shapes.reduce((total, shape) => total + size(shape), 0);
    await checkOp({
      ...summing(all, 2.25),
      samples: 4,
      inputs: shapes.map((shape, i) => ({ shape, data: randomF32(size(shape), i + 2, 1.5) })),
      build: (_, tensors) => sumOfSquares(tensors),
      reference: (tensors) => Float64Array.of(sumOfSquaresReference(tensors)),
      gradients: { atol: 1e-6, rtol: 1e-6 },
    });
  }
});

Deno.test("millions of elements, and tensors past the binding limit", async () => {
  const data = randomF32(2_300_001, 3);
  const build = (graph: Graph) => {
    const [x, y] = [graph.input("x", [2_300_001]), graph.input("y", [300, 37])];
    return { sum: sum(x), squares: sumOfSquares([x, y]), small: sum(y) };
  };
  const inputs = { x: data, y: data.subarray(0, 11100) };
  const [x, y] = [inputs.x, inputs.y].map((part) => Float64Array.from(part));
  for (const change of [undefined, bindingLimit(2 ** 15)]) {
    const result = await runGraph(build, inputs, { change });
    const [whole, squares, small] = ["sum", "squares", "small"].map((name) => new Float32Array(result[name]));
    assertClose(whole, [sumReference(x)], summing(x.length, 1), "sum");
    assertClose(squares, [sumOfSquaresReference([x, y])], { atol: 0, rtol: 200 * 2 ** -24 }, "sum of squares");
    assertClose(small, [sumReference(y)], summing(y.length, 1), "small");
    const again = await runGraph(build, inputs, { change });
    for (const name of ["sum", "squares", "small"]) assert.deepEqual(again[name], result[name], "the same bits again");
  }
});

Deno.test("scaling by a tensor of one element, with both gradients", async () => {
  for (const shape of [[3, 8], [7, 5], [90, 100]]) {
    await checkOp({
      atol: 1e-6,
      rtol: 1e-6,
      inputs: [{ shape, data: randomF32(size(shape), 4) }, { shape: [1], data: Float32Array.of(-1.7) }],
      build: (_, [x, factor]) => scaleBy(x, factor),
      reference: ([x, [factor]]) => x.map((value) => value * factor),
      gradients: { ...summing(size(shape), 1), rtol: 1e-6 },
    });
  }
});

Deno.test("the clip coefficient is torch's; no number comes of an infinite or undefined norm", async () => {
  const negativeNaN = new Float32Array(Uint32Array.of(0xffc00001).buffer)[0];
  const cases = [0, 1e-30, 0.25, 0.999, 1, 1.001, 4, 1e8, 3.4e38, Infinity, NaN, negativeNaN];
  for (const maxNorm of [1, 0.01, 3e38]) {
    for (const squared of cases) {
      const data = { squared: Float32Array.of(squared) };
      const build = (graph: Graph) => ({ clip: clipCoefficient(graph.input("squared", [1]), maxNorm) });
      const clip = new Float32Array((await runGraph(build, data)).clip);
      const [coefficient, norm, finite] = clipReference(Math.fround(squared), Math.fround(maxNorm));
      // A square root and a quotient, good to 2.5 units each.
      assertClose(clip, [coefficient, norm, finite, 0], { atol: 1e-37, rtol: 2 ** -21 }, `${squared} to ${maxNorm}`);
    }
  }
});

Deno.test("overflowing squares give an infinite norm", async () => {
  const { clip } = await runGraph(
    (graph) => ({ clip: clipCoefficient(sumOfSquares([graph.input("x", [70])]), 1) }),
    { x: new Float32Array(70).fill(1e20) },
  );
  assert.deepEqual([...new Float32Array(clip)], [0, Infinity, 0, 0]);
});

Deno.test("reductions refuse what doesn't fit", () => {
  const graph = new Graph();
  const [x, ids, one] = [graph.input("x", [2, 3]), graph.input("i", [4], "u32"), graph.input("o", [1])];
  assert.throws(() => sum(ids), { name: "RangeError", message: /Cannot sum \(4\) u32: want f32/ });
  assert.throws(() => sum(graph.input("n", [0, 3])), /Cannot sum \(0, 3\) f32/);
  assert.throws(() => scaleBy(x, x), /Cannot scale \(2, 3\) f32 by \(2, 3\) f32: want f32 and \(1\) f32/);
  assert.throws(() => scaleBy(ids, one), /Cannot scale \(4\) u32/);
  assert.throws(() => clipCoefficient(x, 1), /Cannot clip \(2, 3\) f32 to 1: want \(1\) f32 and a norm above 0/);
  assert.throws(() => clipCoefficient(one, 0), /to 0/);
  assert.throws(() => clipCoefficient(one, NaN), /to NaN/);
});
