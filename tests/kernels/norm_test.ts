/** Norms against f64: whole vectors and ragged columns, more rows than a block, fused with a residual and alone. */
import assert from "node:assert/strict";
import { Graph } from "../../kernels/gpu/graph.ts";
import { layerNorm, residualLayerNorm, residualRmsNorm, rmsNorm } from "../../kernels/norm.ts";
import { checkOp, randomF32 } from "../harness.ts";
import { norm } from "../reference/norm.ts";

const EPS = 1e-5;
// Sums of C f32 terms in lanes: about log2(C) + C / 8 roundings of 2^-24 each, on values of size 1.
const TOLERANCE = { atol: 4e-6, rtol: 1e-5 };
// Gradients of parameters sum N rows on top.
const GRADIENTS = { atol: 2e-5, rtol: 2e-5 };

// Of 2,060 columns a subgroup of the CPU driver would hold too many: 64 lanes share a row.
const sizes = [[70, 48], [33, 37], [5, 260], [1, 4], [3, 2060]] as const;
const shifted = (length: number, seed: number) => randomF32(length, seed).map((value) => 2 * value + 0.5);

for (const [N, C] of sizes) {
  const x = { shape: [N, C], data: shifted(N * C, 1) };
  const skip = { shape: [N, C], data: randomF32(N * C, 2) };
  const weight = { shape: [C], data: shifted(C, 3) };
  const bias = { shape: [C], data: randomF32(C, 4) };

  Deno.test(`layer norm (${N}, ${C})`, async () => {
    await checkOp({
      build: (_, [x, weight, bias]) => layerNorm(x, weight, bias, EPS),
      reference: ([x, weight, bias]) => norm(x, weight, bias, EPS),
      inputs: [x, weight, bias],
      gradients: GRADIENTS,
      ...TOLERANCE,
    });
  });

  Deno.test(`RMS norm (${N}, ${C})`, async () => {
    await checkOp({
      build: (_, [x, weight]) => rmsNorm(x, weight, EPS),
      reference: ([x, weight]) => norm(x, weight, null, EPS),
      inputs: [x, weight],
      gradients: GRADIENTS,
      ...TOLERANCE,
    });
  });

  Deno.test(`norms of a sum (${N}, ${C})`, async () => {
    const sum = (a: Float64Array, b: Float64Array) => a.map((value, i) => value + b[i]);
    await checkOp({
      build: (_, [x, skip, weight, bias]) => Object.values(residualLayerNorm(x, skip, weight, bias, EPS)),
      reference: ([x, skip, weight, bias]) => [sum(x, skip), norm(sum(x, skip), weight, bias, EPS)],
      inputs: [x, skip, weight, bias],
      gradients: GRADIENTS,
      ...TOLERANCE,
    });
    await checkOp({
      build: (_, [x, skip, weight]) => Object.values(residualRmsNorm(x, skip, weight, EPS)),
      reference: ([x, skip, weight]) => [sum(x, skip), norm(sum(x, skip), weight, null, EPS)],
      inputs: [x, skip, weight],
      gradients: GRADIENTS,
      ...TOLERANCE,
    });
  });
}

Deno.test("wrong shapes are named", () => {
  const graph = new Graph();
  const x = graph.input("x", [4, 8]);
  const weight = graph.input("w", [7]);
  assert.throws(() => rmsNorm(x, weight, EPS), /Cannot norm \(4, 8\) f32, \(7\) f32 \(rms\)/);
});
