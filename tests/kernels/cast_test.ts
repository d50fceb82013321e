/** Casts bit by bit against the host's: every rounding case, odd rows, memory past the binding limit, gradients. */
import assert from "node:assert/strict";
import { cast, type FloatType } from "../../kernels/cast.ts";
import { differentiate } from "../../kernels/gpu/grad.ts";
import { byteLength, Graph } from "../../kernels/gpu/graph.ts";
import { multiply } from "../../kernels/pointwise.ts";
import { fromF32 } from "../../model/float_formats.ts";
import { randomF32 } from "../harness.ts";
import { bindingLimit, runGraph, type RunOptions } from "./run_graph.ts";

const HALVES = ["bf16", "f16"] as const;

/** Every half's neighbourhood: itself, the tie above it, and the numbers just below and above the tie. */
function neighbourhoods(dtype: "bf16" | "f16"): Float32Array {
  const bits = new Uint32Array(4 * 0x10000);
  const cut = dtype === "bf16" ? 16 : 13;
  const halves = Uint16Array.from({ length: 0x10000 }, (_, i) => i);
  const exact = dtype === "bf16"
    ? Uint32Array.from(halves, (half) => half << 16)
    : new Uint32Array(Float32Array.from(new Float16Array(halves.buffer)).buffer);
  // A subnormal f16 is cut at a higher bit than a normal one: by its leading bit, as an f32 has it.
  const tie = (at: number) => {
    const exponent = (exact[at] >>> 23) & 0xff;
    return dtype === "f16" && exponent < 113 ? 1 << Math.min(22, cut - 1 + 113 - exponent) : 1 << (cut - 1);
  };
  for (let i = 0; i < 0x10000; i++) {
    bits[4 * i] = exact[i];
    bits[4 * i + 1] = exact[i] + tie(i);
    bits[4 * i + 2] = exact[i] + tie(i) - 1;
    bits[4 * i + 3] = exact[i] + tie(i) + 1;
  }
  return new Float32Array(bits.buffer);
}

function expected(values: Float32Array, dtype: "bf16" | "f16"): Uint16Array {
  return new Uint16Array(fromF32(values, dtype === "bf16" ? "BF16" : "F16").slice().buffer);
}

function isNaN16(half: number, dtype: "bf16" | "f16"): boolean {
  return (half & 0x7fff) > (dtype === "bf16" ? 0x7f80 : 0x7c00);
}

/** The same bits; any NaN for a NaN. */
function assertHalves(actual: Uint16Array, wanted: Uint16Array, dtype: "bf16" | "f16"): void {
  assert.equal(actual.length, wanted.length);
  const wrong = wanted.findIndex((half, i) => isNaN16(half, dtype) ? !isNaN16(actual[i], dtype) : actual[i] !== half);
  assert.equal(
    wrong,
    -1,
    `element ${wrong} is ${actual[wrong]?.toString(16)}, expected ${wanted[wrong]?.toString(16)}`,
  );
}

async function casted(
  values: ArrayBufferView,
  shape: readonly number[],
  types: readonly [FloatType, FloatType],
  options?: RunOptions,
): Promise<ArrayBuffer> {
  const { y } = await runGraph(
    (graph) => ({ y: cast(graph.input("x", shape, types[0]), types[1]) }),
    { x: values },
    options,
  );
  return y;
}

/** Rows of packed halves, without their padding. */
function rowsOf(packed: ArrayBuffer, rows: number, columns: number): Uint16Array {
  const all = new Uint16Array(packed);
  const stride = Math.ceil(columns / 2) * 2;
  const result = new Uint16Array(rows * columns);
  for (let row = 0; row < rows; row++) {
    result.set(all.subarray(row * stride, row * stride + columns), row * columns);
    if (stride > columns) assert.equal(all[row * stride + columns], 0, "padding is zero");
  }
  return result;
}

for (const dtype of HALVES) {
  Deno.test(`f32 to ${dtype}: every half, every tie and its neighbours`, async () => {
    const values = neighbourhoods(dtype);
    assertHalves(new Uint16Array(await casted(values, [512, 512], ["f32", dtype])), expected(values, dtype), dtype);
  });

  Deno.test(`f32 to ${dtype}: zeros, the ends of the range and beyond`, async () => {
    const values = Float32Array.of(
      ...[0, -0, Infinity, -Infinity, NaN, 65504, 65519.996, 65520, 65536, -65520, 3.4028234663852886e38, -3.39e38],
      ...[2 ** -14, 2 ** -24, 2 ** -25, -(2 ** -25), 2 ** -25 * (1 + 2 ** -23), 2 ** -26, 2 ** -149, -(2 ** -126), 1],
    );
    const halves = rowsOf(await casted(values, [3, 7], ["f32", dtype]), 3, 7);
    assertHalves(halves, expected(values, dtype), dtype);
  });

  Deno.test(`${dtype} to f32: every half`, async () => {
    const halves = Uint16Array.from({ length: 0x10000 }, (_, i) => i);
    const widened = new Float32Array(await casted(halves, [256, 256], [dtype, "f32"]));
    const wanted = dtype === "f16"
      ? Float32Array.from(new Float16Array(halves.buffer))
      : new Float32Array(Uint32Array.from(halves, (half) => half << 16).buffer);
    const wrong = wanted.findIndex((value, i) => !Object.is(value, widened[i]));
    assert.equal(wrong, -1, `half ${wrong} is ${widened[wrong]}, expected ${wanted[wrong]}`);
  });

  for (const [rows, columns] of [[1, 1], [5, 3], [3, 7], [4, 6], [3, 8], [67, 129]] as const) {
    Deno.test(`f32 to ${dtype} and back, (${rows}, ${columns})`, async () => {
      const values = randomF32(rows * columns, columns, 100);
      const packed = await casted(values, [rows, columns], ["f32", dtype]);
      assert.equal(packed.byteLength, byteLength({ shape: [rows, columns], dtype }));
      const halves = rowsOf(packed, rows, columns);
      assertHalves(halves, expected(values, dtype), dtype);
      const back = new Float32Array(await casted(new Uint8Array(packed), [rows, columns], [dtype, "f32"]));
      const again = await casted(back, [rows, columns], ["f32", dtype]);
      assert.deepEqual(new Uint8Array(again), new Uint8Array(packed));
      assert.ok(back.every((value, i) => Math.abs(value - values[i]) <= Math.abs(values[i]) * 2 ** -8 + 2 ** -25));
    });
  }

  Deno.test(`tensors past the binding limit are cast by slices to ${dtype} and back`, async () => {
    for (const shape of [[1000, 3], [1000, 12], [3000]]) {
      const values = randomF32(shape.reduce((a, b) => a * b), 3);
      const options = { change: bindingLimit(8192) };
      const whole = await casted(values, shape, ["f32", dtype]);
      assert.deepEqual(await casted(values, shape, ["f32", dtype], options), whole);
      const back = await casted(new Uint8Array(whole), shape, [dtype, "f32"]);
      assert.deepEqual(await casted(new Uint8Array(whole), shape, [dtype, "f32"], options), back);
    }
  });
}

Deno.test("bf16 to f16: as through f32", async () => {
  const values = Float32Array.of(1.5, -3e38, 1e-6, 0, 65536, -0.33, 2 ** -15, 7, 1e5);
  const packed = await casted(values, [3, 3], ["f32", "bf16"]);
  const through = await casted(
    new Float32Array(await casted(new Uint8Array(packed), [3, 3], ["bf16", "f32"])),
    [3, 3],
    ["f32", "f16"],
  );
  assert.deepEqual(await casted(new Uint8Array(packed), [3, 3], ["bf16", "f16"]), through);
});

Deno.test("the gradient passes a cast in f32", async () => {
  const data = randomF32(15, 1);
  const weights = randomF32(15, 2);
  const { dx, dpacked } = await runGraph((graph) => {
    const x = graph.input("x", [3, 5]);
    const packed = cast(x, "bf16");
    const y = multiply(cast(packed, "f32"), graph.input("w", [3, 5]));
    const [dx, dpacked] = differentiate([{ tensor: y, gradient: graph.input("dy", [3, 5]) }], [x, packed]);
    return { dx, dpacked };
  }, { x: data, w: weights, dy: Float32Array.from(data, () => 2) });
  assert.deepEqual(new Float32Array(dx), weights.map((weight) => 2 * weight));
  assert.deepEqual(new Float32Array(dpacked), weights.map((weight) => 2 * weight));
});

Deno.test("a cast to its own format is the tensor itself; others are refused", () => {
  const graph = new Graph();
  const x = graph.input("x", [2, 3]);
  assert.equal(cast(x, "f32"), x);
  const ids = graph.input("ids", [2], "u32");
  assert.throws(() => cast(ids, "f16"), /Cannot cast \(2\) u32 to f16: want f32, bf16 or f16/);
  const other = graph.variable("copy", [2, 4], "bf16");
  assert.throws(() => cast(x, "bf16", other), /Cannot cast \(2, 3\) f32 into \(2, 4\) bf16: want \(2, 3\) bf16/);
});
