/** Norms against f64: whole vectors and ragged columns, more rows than a block, fused with a residual and alone. */
import assert from "node:assert/strict";
import { Graph } from "../../kernels/gpu/graph.ts";
import { layerNorm, residualLayerNorm, residualRmsNorm, rmsNorm } from "../../kernels/norm.ts";
import { differentiate } from "../../kernels/gpu/grad.ts";
import { compile } from "../../kernels/gpu/program.ts";
import { createStore } from "../../kernels/gpu/store.ts";
import { dropout } from "../../kernels/pointwise.ts";
import { checkOp, randomF32, testDevice } from "../harness.ts";
import { norm } from "../reference/norm.ts";
import { dropoutFactors } from "../reference/pointwise.ts";

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

for (const [N, C] of sizes) {
  Deno.test(`norms of a sum whose branch is dropped (${N}, ${C})`, async () => {
    const [rate, site] = [0.25, 7];
    const words = Uint32Array.of(11, 5, 1000, 0);
    const factors = dropoutFactors([N, C], rate, site, words);
    const sum = (x: Float64Array, skip: Float64Array) => x.map((value, i) => value * factors[i] + skip[i]);
    for (const kind of ["layer", "rms"] as const) {
      await checkOp({
        build(_, [x, skip, weight, bias, counter]) {
          const dropped = { rate, site, counter };
          return Object.values(
            kind === "layer"
              ? residualLayerNorm(x, skip, weight, bias, EPS, dropped)
              : residualRmsNorm(x, skip, weight, EPS, dropped),
          );
        },
        reference([x, skip, weight, bias]) {
          return [sum(x, skip), norm(sum(x, skip), weight, kind === "layer" ? bias : null, EPS)];
        },
        inputs: [
          { shape: [N, C], data: shifted(N * C, 1) },
          { shape: [N, C], data: randomF32(N * C, 2) },
          { shape: [C], data: shifted(C, 3) },
          { shape: [C], data: randomF32(C, 4), grad: kind === "layer" },
          { shape: [4], data: words },
        ],
        gradients: GRADIENTS,
        ...TOLERANCE,
      });
    }
  });
}

Deno.test("dropping in the norm gives the bits that dropping before it gives, gradients too", async () => {
  const [N, C, rate, site] = [70, 48, 0.1, 2];
  const device = await testDevice();
  using store = createStore(device);
  const results = [];
  for (const fused of [false, true]) {
    const graph = new Graph();
    const [x, skip] = ["x", "skip"].map((name) => graph.input(name, [N, C]));
    const [weight, bias] = ["weight", "bias"].map((name) => graph.input(name, [C]));
    const counter = graph.input("counter", [4], "u32");
    const normed = fused
      ? residualLayerNorm(x, skip, weight, bias, EPS, { rate, site, counter })
      : residualLayerNorm(dropout(x, rate, site, counter), skip, weight, bias, EPS);
    const seeds = [
      { tensor: normed.normed, gradient: graph.input("dnormed", [N, C]) },
      { tensor: normed.sum, gradient: graph.input("dsum", [N, C]) },
    ];
    const [dx, dskip, dweight] = differentiate(seeds, [x, skip, weight]);
    using program = await compile(device, graph, { ...normed, dx, dskip, dweight }, store);
    const data = Object.fromEntries(["x", "skip", "dnormed", "dsum"].map((name, i) => [name, randomF32(N * C, i)]));
    const parameters = { weight: shifted(C, 8), bias: randomF32(C, 9) };
    program.run({ ...data, ...parameters, counter: Uint32Array.of(3, 1, 64, 0) });
    const read = await program.read("sum", "normed", "dx", "dskip", "dweight");
    results.push(read.map((bytes) => new Uint32Array(bytes)));
  }
  assert.deepEqual(results[1], results[0]);
});

Deno.test("wrong shapes are named", () => {
  const graph = new Graph();
  const x = graph.input("x", [4, 8]);
  const weight = graph.input("w", [7]);
  assert.throws(() => rmsNorm(x, weight, EPS), /Cannot norm \(4, 8\) f32, \(7\) f32 \(rms\)/);
});
