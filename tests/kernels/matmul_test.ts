/** Matrix products by every candidate against f64, at ragged sizes and past bindings and textures. */
import assert from "node:assert/strict";
import {
  byteLength,
  type Call,
  type Capabilities,
  type Dispatch,
  Graph,
  type Tensor,
} from "../../kernels/gpu/graph.ts";
import { cast, type FloatType } from "../../kernels/cast.ts";
import { columnSum } from "../../kernels/column_sum.ts";
import { type Activation, matmul, matmulActivation, type MatmulOptions } from "../../kernels/matmul.ts";
import { checkOp, randomF32 } from "../harness.ts";
import { bindingLimit } from "./run_graph.ts";
import { gelu, silu } from "../reference/pointwise.ts";
import { columnSum as columnSumReference, matmul as reference } from "../reference/matmul.ts";

/** Values in (-1, 1) summed k times, each sum rounded by at most 2^-24 of a partial sum that stays well below k. */
function allowance(k: number) {
  return { atol: k * 2 ** -24, rtol: k * 2 ** -24 };
}

interface Case extends MatmulOptions {
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly withBias?: boolean;
  readonly samples?: number;
  readonly gradients?: boolean;
  /** Formats of the operands. */
  readonly formats?: readonly [a: FloatType, b: FloatType];
  /** Replaces the op's call by the same under other capabilities. */
  readonly change?: (device: Capabilities) => Capabilities;
}

function check({ withBias, change, samples = 4, gradients = true, formats = ["f32", "f32"], ...sizes }: Case) {
  const { m, n, k, transposeA, transposeB } = sizes;
  const packed = formats.find((format) => format !== "f32");
  const longest = Math.max(k, m, n);
  return checkOp({
    ...allowance(longest),
    // The incoming gradient is rounded to the packed format, each of its values by half a unit in the last place.
    ...(packed ? { gradients: { atol: longest * 2 ** -(BITS[packed] + 1), rtol: 0 } } : {}),
    samples,
    inputs: [
      { shape: transposeA ? [k, m] : [m, k], data: exact(m * k, 1, formats[0]), grad: gradients },
      { shape: transposeB ? [n, k] : [k, n], data: exact(k * n, 2, formats[1]), grad: gradients },
      ...(withBias ? [{ shape: [n], data: randomF32(n, 3), grad: gradients }] : []),
    ],
    build(_, [a, b, bias]) {
      const product = matmul(cast(a, formats[0]), cast(b, formats[1]), { transposeA, transposeB, bias });
      return change === undefined ? product : under(product, change);
    },
    reference: ([a, b, bias]) => reference(a, b, sizes, bias),
  });
}

/** Bits of the fraction. */
const BITS = { f32: 23, bf16: 7, f16: 10 };

/** Numbers in (-1, 1) that a format holds exactly. */
function exact(length: number, seed: number, format: FloatType): Float32Array {
  const unit = 2 ** BITS[format];
  return format === "f32" ? randomF32(length, seed) : randomF32(length, seed).map((x) => Math.round(x * unit) / unit);
}

/** Offers the tensor's call the kernels of an adapter with other capabilities. */
function under(tensor: Tensor, change: (device: Capabilities) => Capabilities): Tensor {
  const call = tensor.source as Call;
  const { op } = call;
  Object.assign(call, {
    op: { ...op, kernels: (made: Call, device: Capabilities) => op.kernels(made, change(device)) },
  });
  return tensor;
}

const forms = { nn: {}, nt: { transposeB: true }, tn: { transposeA: true } };
for (const [name, form] of Object.entries(forms)) {
  const tn = name === "tn";
  Deno.test(`matmul ${name}: every candidate, past tile sizes, ragged in rows`, async () => {
    const candidates = await check({ ...form, m: tn ? 128 : 70, n: 128, k: tn ? 71 : 64, withBias: true });
    assert.ok(candidates >= 5, `only ${candidates} candidates`);
  });
  Deno.test(`matmul ${name}: sizes that are no multiple of 4`, async () => {
    await check({ ...form, m: 67, n: 9, k: 35, withBias: true });
  });
  Deno.test(`matmul ${name}: multiples of 4 that no texture row takes`, async () => {
    await check({ ...form, m: 36, n: 76, k: 20 });
  });
  Deno.test(`matmul ${name}: operands cut where they pass a binding or a texture`, async () => {
    const sizes = { nn: { m: 70, n: 64, k: 128 }, nt: { m: 70, n: 132, k: 64 }, tn: { m: 128, n: 64, k: 70 } }[name]!;
    await check({ ...form, ...sizes, withBias: true, samples: 1, change: bindingLimit(64 * 132 * 4, 64) });
  });
  Deno.test(`matmul ${name}: the kernels for GPUs`, async () => {
    await check({ ...form, m: 68, n: 68, k: 40, samples: 2, change: (device) => ({ ...device, cpu: false }) });
  });
}

const FORMATS: readonly (readonly [FloatType, FloatType])[] = [
  ["bf16", "bf16"],
  ["f16", "f16"],
  ["f32", "bf16"],
  ["f16", "f32"],
];
for (const formats of FORMATS) {
  for (const [name, form] of Object.entries(forms)) {
    const tn = name === "tn";
    Deno.test(`matmul ${name} of ${formats.join(" and ")}: every candidate, sizes that suit none, few rows`, async () => {
      const candidates = await check({ ...form, formats, m: tn ? 128 : 70, n: 128, k: tn ? 71 : 128, withBias: true });
      assert.ok(candidates >= 5, `only ${candidates} candidates`);
      await check({ ...form, formats, m: 67, n: 9, k: 35, withBias: true });
      await check({ ...form, formats, m: 8, n: 128, k: 128, gradients: false });
    });
  }
}

for (const [name, form] of Object.entries(forms)) {
  Deno.test(`matmul ${name} of bf16: past bindings and textures, wide, and by the kernels for GPUs`, async () => {
    const formats = ["bf16", "bf16"] as const;
    const sizes = {
      nn: { m: 70, n: 128, k: 256 },
      nt: { m: 70, n: 132, k: 128 },
      tn: { m: 256, n: 128, k: 70 },
    }[name]!;
    await check({ ...form, formats, ...sizes, withBias: true, samples: 1, change: bindingLimit(64 * 132 * 4, 64) });
    await check({ ...form, formats, m: 136, n: 2176, k: 72, samples: 1 });
    await check({ ...form, formats, m: 72, n: 72, k: 40, change: (device) => ({ ...device, cpu: false }) });
  });
}

for (const m of [1, 3, 8]) {
  for (const [name, form] of Object.entries({ nn: forms.nn, nt: forms.nt })) {
    Deno.test(`matmul ${name}: ${m} rows`, async () => {
      await check({ ...form, m, n: 192, k: 256, withBias: true, gradients: false });
    });
  }
}

Deno.test("matmul nn and tn: wide operands copied to textures by ranges of columns", async () => {
  await check({ m: 70, n: 1024, k: 64, withBias: true, samples: 1 });
  await check({ ...forms.tn, m: 2048, n: 64, k: 7, samples: 1 });
});

Deno.test("matmul adds into a running sum in its memory", async () => {
  await checkOp({
    ...allowance(64),
    samples: 4,
    inputs: [[20, 64], [64, 64], [20, 64]].map((shape, i) => ({ shape, data: randomF32(shape[0] * shape[1], i) })),
    build: (_, [a, b, into]) => matmul(a, b, { into }),
    reference: ([a, b, into]) => reference(a, b, { m: 20, n: 64, k: 64 }).map((value, i) => value + into[i]),
  });
});

for (const [name, form] of Object.entries(forms)) {
  Deno.test(`matmul ${name}: bias, residual and activation, by every candidate and the kernels for GPUs`, async () => {
    await checkEpilogue({ ...form, m: 40, n: 64, k: 64, activation: "gelu_tanh" });
    await checkEpilogue({ ...form, m: 21, n: 19, k: 9, activation: "silu" });
    await checkEpilogue({ ...form, m: 2, n: 64, k: 64, activation: "gelu_erf" });
    await checkEpilogue({ ...form, m: 24, n: 72, k: 520, activation: "gelu_erf", change: onGpu });
    await checkEpilogue({ ...form, m: 64, n: 132, k: 192, activation: "silu", change: bindingLimit(64 * 192 * 4, 64) });
  });
}

const ACTIVATIONS = {
  gelu_tanh: (x: number) => gelu(x, "tanh"),
  gelu_erf: (x: number) => gelu(x, "erf"),
  silu,
};

/** pre and activated, and all gradients; curves of activations are below 1.2. */
async function checkEpilogue(sizes: MatmulOptions & { m: number; n: number; k: number } & ActivationCase) {
  const { m, n, k, transposeA, transposeB, activation, change } = sizes;
  const { atol } = allowance(2 * Math.max(m, n, k));
  await checkOp({
    atol: atol + 1e-6,
    rtol: 1e-6,
    samples: 3,
    inputs: [
      { shape: transposeA ? [k, m] : [m, k], data: randomF32(m * k, 1) },
      { shape: transposeB ? [n, k] : [k, n], data: randomF32(k * n, 2) },
      { shape: [n], data: randomF32(n, 3) },
      { shape: [m, n], data: randomF32(m * n, 4) },
    ],
    build(_, [a, b, bias, residual]) {
      const { pre, activated } = matmulActivation(a, b, { transposeA, transposeB, bias, residual, activation });
      if (change === undefined) return [pre, activated];
      under(pre, change);
      return [pre, activated];
    },
    reference([a, b, bias, residual]) {
      const pre = reference(a, b, sizes, bias).map((value, i) => value + residual[i]);
      return [pre, pre.map(ACTIVATIONS[activation])];
    },
  });
}

interface ActivationCase {
  readonly activation: Activation;
  readonly change?: (device: Capabilities) => Capabilities;
}

function onGpu(device: Capabilities): Capabilities {
  return { ...device, cpu: false };
}

Deno.test("matmul refuses what doesn't fit", () => {
  const graph = new Graph();
  const [a, b, bias] = [graph.input("a", [8, 6]), graph.input("b", [16, 6]), graph.input("bias", [6])];
  assert.throws(() => matmul(a, b), {
    name: "RangeError",
    message: "Cannot multiply (8, 6) by (16, 6): inner sizes are 6 and 16",
  });
  assert.throws(() => matmul(a, b, { transposeA: true, transposeB: true }), /both transposed: transpose one at most/);
  assert.throws(() => matmul(a, b, { transposeB: true, bias }), /with bias \(6\): it must be \(16\)/);
  assert.throws(() => matmul(a, b, { transposeB: true, into: a }), /into \(8, 6\): it must be \(8, 16\)/);
  assert.throws(() => matmul(a, graph.input("ids", [6, 2], "u32")), /one is u32, want f32, bf16 or f16/);
  assert.throws(() => matmul(a, bias), /both must be matrices/);
});

Deno.test("no dispatch of a large product passes a limit", () => {
  const device = adapter({ cpu: true, subgroupSize: 8 });
  for (const dispatches of headProducts(768, 50304).flatMap((call) => call.op.kernels(call, device))) {
    dispatches.forEach((dispatch) => assertBound(dispatch, device));
  }
});

Deno.test("no kernel's loops pass what CPU drivers run, whatever the inner dimension", () => {
  const device = adapter({ cpu: true, subgroupSize: 8 });
  for (const dispatches of headProducts(64, 262144).flatMap((call) => call.op.kernels(call, device))) {
    for (const { label, uniforms } of dispatches) {
      const steps = uniforms![2];
      const iterations = label.includes("tile")
        ? 23 * Math.ceil(steps / 16)
        : steps / Number(/k(\d+)$/.exec(label)?.[1] ?? 1);
      assert.ok(iterations <= 50_000, `${label} makes ${iterations} iterations`);
    }
  }
});

Deno.test("parts of the inner dimension are whole passes of a kernel's loop", () => {
  const device = adapter({ cpu: false, subgroupSize: 32 });
  for (const dispatches of headProducts(768, 50304, 1).flatMap((call) => call.op.kernels(call, device))) {
    for (const { label, uniforms } of dispatches) {
      if (label.includes(" nn ")) assert.equal(uniforms![2] % Number(/k(\d+)$/.exec(label)?.[1] ?? 1), 0, label);
    }
  }
});

function adapter(about: Partial<Capabilities>): Capabilities {
  return bindingLimit(128 << 20, 16384)(
    { f16: false, loopIterations: about.cpu ? 50_000 : Infinity, ...about } as Capabilities,
  );
}

/** The products of a language model's head: logits, and the gradients of both operands. */
function headProducts(width: number, vocabulary: number, rows = 512): Call[] {
  const graph = new Graph();
  const [hidden, wte] = [graph.input("hidden", [rows, width]), graph.input("wte", [vocabulary, width])];
  const logits = graph.input("logits", [rows, vocabulary]);
  return [
    matmul(hidden, wte, { transposeB: true }),
    matmul(logits, wte),
    matmul(logits, hidden, { transposeA: true, into: wte }),
  ].map(({ source }) => source as Call);
}

function assertBound({ label, bindings, workgroups }: Dispatch, { limits }: Capabilities): void {
  assert.ok(workgroups.every((size) => size <= limits.maxComputeWorkgroupsPerDimension), label);
  for (const { tensor, rows = [0, tensor.shape[0]], as } of bindings) {
    const rowBytes = byteLength(tensor) / tensor.shape[0];
    if (as === undefined || as === "buffer") {
      assert.ok((rows[1] - rows[0]) * rowBytes <= limits.maxStorageBufferBindingSize, label);
      assert.equal(rows[0] * rowBytes % limits.minStorageBufferOffsetAlignment, 0, label);
      continue;
    }
    const [from, to] = as.columns ?? [0, as.rowLength];
    const [first, last] = as.rows!;
    assert.ok(last - first <= limits.maxTextureDimension2D && (to - from) / 4 <= limits.maxTextureDimension2D, label);
    assert.equal(as.rowLength % 64 + from % 4 + to % 4, 0, label);
  }
}

for (const [rows, columns] of [[300, 72], [5, 33], [129, 7], [70, 300]]) {
  Deno.test(`column sum of (${rows}, ${columns}), returned and added`, async () => {
    const data = randomF32(rows * columns, 4);
    const ones = randomF32(columns, 5);
    await checkOp({
      ...allowance(rows),
      inputs: [{ shape: [rows, columns], data, grad: false }, { shape: [columns], data: ones, grad: false }],
      build: (_, [x, into]) => [columnSum(x), columnSum(x, into)],
      reference([x, into]) {
        const sums = columnSumReference(x, columns);
        return [sums, sums.map((value, i) => value + into[i])];
      },
    });
  });
}

for (const m of [9, 16, 17]) {
  Deno.test(`matmul nt: ${m} rows, by every candidate`, async () => {
    for (const b of ["f32", "bf16"] as const) {
      await check({ m, n: 200, k: 128, transposeB: true, withBias: true, formats: ["f32", b], gradients: false });
    }
  });
}
