/** Cutting and joining by columns, with gradients, past the binding limit too. */
import assert from "node:assert/strict";
import { concat, split } from "../../kernels/columns.ts";
import { differentiate } from "../../kernels/gpu/grad.ts";
import { Graph } from "../../kernels/gpu/graph.ts";
import { checkOp, randomF32 } from "../harness.ts";
import { concatReference, splitReference } from "../reference/columns.ts";
import { bindingLimit, runGraph } from "./run_graph.ts";

/** Copies are exact; central differences in f64 are good to 1e-8. */
const EXACT = { atol: 0, rtol: 0, gradients: { atol: 1e-7, rtol: 1e-6 } };

/** Rows, columns of a part, parts: by vectors of four, by elements, past a workgroup. */
const SIZES = [[9, 8, 3], [7, 5, 3], [131, 3, 2], [1, 1, 4], [5, 12, 1], [33, 2, 2]];

Deno.test("split cuts columns; its gradient joins them", async () => {
  for (const [rows, columns, parts] of SIZES) {
    await checkOp({
      ...EXACT,
      inputs: [{ shape: [rows, parts * columns], data: randomF32(rows * parts * columns, 1) }],
      build: (_, [x]) => split(x, parts),
      reference: ([x]) => splitReference(x, parts, rows),
    });
  }
});

Deno.test("concat joins columns; its gradient cuts them", async () => {
  for (const [rows, columns, parts] of SIZES) {
    const inputs = Array.from({ length: parts }, (_, i) => ({
      shape: [rows, columns],
      data: randomF32(rows * columns, i),
    }));
    await checkOp({
      ...EXACT,
      inputs,
      build: (_, xs) => concat(xs),
      reference: (xs) => concatReference(xs, rows),
    });
  }
});

Deno.test("parts that reach no loss have no gradient", async () => {
  const { dx } = await runGraph((graph) => {
    const x = graph.input("x", [3, 6]);
    const [, second] = split(x, 3);
    const [dx] = differentiate([{ tensor: second, gradient: graph.input("dy", [3, 2]) }], [x]);
    return { dx };
  }, { x: randomF32(18, 1), dy: Float32Array.of(1, 2, 3, 4, 5, 6) });
  assert.deepEqual([...new Float32Array(dx)], [0, 0, 1, 2, 0, 0, 0, 0, 3, 4, 0, 0, 0, 0, 5, 6, 0, 0]);
});

Deno.test("columns of tensors past the binding limit, at offsets that suit both sides", async () => {
  for (const [rows, columns, parts, limit] of [[37, 16, 4, 4096], [150, 5, 3, 4096], [70, 2, 32, 33 * 256]]) {
    const data = randomF32(rows * columns * parts, 2);
    const result = await runGraph(
      (graph) => {
        const pieces = split(graph.input("x", [rows, parts * columns]), parts);
        return { ...Object.fromEntries(pieces.map((piece, i) => [`part${i}`, piece])), whole: concat(pieces) };
      },
      { x: data },
      { change: bindingLimit(limit) },
    );
    assert.deepEqual(new Float32Array(result.whole), data);
    splitReference(Float64Array.from(data), parts, rows).forEach((expected, i) => {
      assert.deepEqual(new Float32Array(result[`part${i}`]), Float32Array.from(expected));
    });
  }
});

Deno.test("columns refuse what doesn't fit", () => {
  const graph = new Graph();
  const [a, b, ids] = [graph.input("a", [2, 6]), graph.input("b", [2, 3]), graph.input("i", [2, 6], "u32")];
  assert.throws(() => split(a, 4), { name: "RangeError", message: /split \(2, 6\) f32 into 4 parts: want/ });
  assert.throws(() => split(ids, 3), /\(2, 6\) u32/);
  assert.throws(() => split(a, 0), /into 0 parts/);
  assert.throws(() => split(graph.input("v", [6]), 3), /\(6\) f32/);
  assert.throws(() => concat([a, b]), { name: "RangeError", message: /join \(2, 6\) f32 and \(2, 3\) f32: want/ });
  assert.throws(() => concat([a, ids]), /\(2, 6\) u32/);
});
