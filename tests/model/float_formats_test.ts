/** f16 and bf16: exact one way, rounded to nearest even the other. No GPU. */

import assert from "node:assert/strict";
import fc from "fast-check";
import { fromF32, toF32 } from "../../model/float_formats.ts";

Deno.test("float formats: every f16 and bf16 value goes to f32 and back", () => {
  const halves = Uint16Array.from({ length: 65536 }, (_, i) => i);
  const data = new Uint8Array(halves.buffer);
  for (const dtype of ["F16", "BF16"] as const) {
    const values = toF32({ dtype, data });
    const back = new Uint16Array(fromF32(values, dtype).buffer);
    values.forEach((value, i) => {
      if (Number.isNaN(value)) {
        assert(Number.isNaN(toF32({ dtype, data: new Uint8Array(back.slice(i, i + 1).buffer) })[0]));
      } else assert.equal(back[i], halves[i]);
    });
  }
});

Deno.test("float formats: rounding goes to the nearest value, ties to even", () => {
  for (const [dtype, bits] of [["F16", 11], ["BF16", 8]] as const) {
    const step = 2 ** (1 - bits); // between 1 and the next value
    const round = (x: number) => toF32({ dtype, data: fromF32(new Float32Array([x]), dtype) })[0];
    assert.equal(round(1 + step / 2), 1);
    assert.equal(round(1 + step * 1.5), 1 + 2 * step);
    assert.equal(round(1 + step / 2 + 2 ** -23), 1 + step);
    assert.equal(round(1 + step * 1.5 - 2 ** -23), 1 + step);
    assert.equal(round(-1 - step / 2), -1);
    assert.equal(round(3.39e38), dtype === "F16" ? Infinity : 2 ** 127 * (2 - 2 ** -7));
    assert.equal(round(3.4028234e38), Infinity);
    assert(Object.is(round(-0), -0));
  }
  const property = fc.property(fc.float({ noNaN: true, noDefaultInfinity: true }), (x) => {
    const kept = toF32({ dtype: "BF16", data: fromF32(new Float32Array([x]), "BF16") })[0];
    assert(Math.abs(kept - x) <= Math.max(Math.abs(x) * 2 ** -8, 2 ** -134) || !Number.isFinite(kept));
  });
  fc.assert(property);
});

Deno.test("float formats: unaligned bytes, F64 and other dtypes", () => {
  const bytes = new Uint8Array(13);
  bytes.set(new Uint8Array(new Float32Array([1.5, -2]).buffer), 1);
  assert.deepEqual(toF32({ dtype: "F32", data: bytes.subarray(1, 9) }), new Float32Array([1.5, -2]));
  const f64 = new Uint8Array(new Float64Array([0.1, 1e300]).buffer);
  assert.deepEqual(toF32({ dtype: "F64", data: f64 }), new Float32Array([0.1, Infinity]));
  assert.throws(() => toF32({ dtype: "I64", data: f64 }), /Cannot read I64 as f32/);
  assert.throws(() => toF32({ dtype: "F32", data: bytes }), /Cannot read 13 bytes as numbers of 4 bytes/);
});
