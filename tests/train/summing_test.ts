/** Sums in the order of ranks against f64 additions that round after each step. */
import assert from "node:assert/strict";
import { fromF32, toF32 } from "../../model/float_formats.ts";
import { sumInPlace } from "../../train/summing.ts";
import { randomF32 } from "../harness.ts";

/** Several blocks, the last of them ragged. */
const LENGTH = 40_003;

/** Values of many magnitudes, so that another order of additions gives other bits. */
function values(rank: number, length = LENGTH): Float32Array {
  const magnitudes = randomF32(length, 91 + rank);
  return randomF32(length, rank).map((value, i) => value * 2 ** Math.round(8 * magnitudes[i]));
}

function inOrder(sources: readonly Float32Array[]): Float32Array {
  return sources[0].map((_, i) => sources.reduce((sum, source) => Math.fround(sum + source[i]), 0));
}

/** Where long arrays differ, `assert.deepEqual` takes minutes to say so. */
function assertSame(actual: Float32Array | Uint16Array, expected: Float32Array | Uint16Array): void {
  const at = actual.findIndex((value, i) => !Object.is(value, expected[i]));
  assert.equal(at, -1, `value ${at}: found ${actual[at]}, wanted ${expected[at]}`);
}

const toBf16 = (source: Float32Array) => new Uint16Array(fromF32(source, "BF16").slice().buffer);
const fromBf16 = (source: Uint16Array) => toF32({ dtype: "BF16", data: new Uint8Array(source.buffer) });

for (const ranks of [1, 2, 3, 4]) {
  Deno.test(`${ranks} ranks' f32 values are added in order`, () => {
    const sources = Array.from({ length: ranks }, (_, rank) => values(rank));
    const expected = inOrder(sources);
    sumInPlace(sources);
    for (const source of sources) assertSame(source, expected);
  });

  Deno.test(`${ranks} ranks' bf16 values are added in f32 and rounded once`, () => {
    const sources = Array.from({ length: ranks }, (_, rank) => toBf16(values(rank)));
    const expected = toBf16(inOrder(sources.map(fromBf16)));
    sumInPlace(sources);
    for (const source of sources) assertSame(source, expected);
  });
}

Deno.test("the order of three values changes their sum", () => {
  const sources = Array.from({ length: 3 }, (_, rank) => values(rank));
  assert.throws(() => assertSame(inOrder(sources), inOrder(sources.toReversed())));
});

Deno.test("a NaN stays a NaN in bf16, opposite infinities make one, and too large a sum becomes infinite", () => {
  const [nan, quiet, most, infinity, minus] = [0x7fff, 0xffc0, 0x7f7f, 0x7f80, 0xff80];
  const sources = [Uint16Array.of(nan, quiet, infinity, most), Uint16Array.of(0, 0x3f80, minus, most)];
  sumInPlace(sources);
  assert.deepEqual([...fromBf16(sources[0])], [NaN, NaN, NaN, Infinity]);
});
