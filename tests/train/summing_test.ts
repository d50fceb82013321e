/** Sums in the order of ranks against f64 additions that round after each step. */
import assert from "node:assert/strict";
import { fromF32, toF32 } from "../../model/float_formats.ts";
import { sumInPlace } from "../../train/summing.ts";
import { randomF32 } from "../harness.ts";

const LENGTH = 5000;

/** Values of many magnitudes, so that another order of additions gives other bits. */
function values(rank: number, length = LENGTH): Float32Array {
  const magnitudes = randomF32(length, 91 + rank);
  return randomF32(length, rank).map((value, i) => value * 2 ** Math.round(8 * magnitudes[i]));
}

function inOrder(sources: readonly Float32Array[]): Float32Array {
  return sources[0].map((_, i) => sources.reduce((sum, source) => Math.fround(sum + source[i]), 0));
}

const toBf16 = (source: Float32Array) => new Uint16Array(fromF32(source, "BF16").slice().buffer);
const fromBf16 = (source: Uint16Array) => toF32({ dtype: "BF16", data: new Uint8Array(source.buffer) });

for (const ranks of [1, 2, 3, 4]) {
  Deno.test(`${ranks} ranks' f32 values are added in order`, () => {
    const sources = Array.from({ length: ranks }, (_, rank) => values(rank));
    const expected = inOrder(sources);
    sumInPlace(sources);
    for (const source of sources) assert.deepEqual(source, expected);
  });

  Deno.test(`${ranks} ranks' bf16 values are added in f32 and rounded once`, () => {
    const sources = Array.from({ length: ranks }, (_, rank) => toBf16(values(rank)));
    const expected = toBf16(inOrder(sources.map(fromBf16)));
    sumInPlace(sources);
    for (const source of sources) assert.deepEqual(source, expected);
  });
}

Deno.test("the order of three values changes their sum", () => {
  const sources = Array.from({ length: 3 }, (_, rank) => values(rank));
  assert.notDeepEqual(inOrder(sources), inOrder(sources.toReversed()));
});

Deno.test("a NaN stays a NaN in bf16, and too large a sum becomes infinite", () => {
  const sources = [Uint16Array.of(0x7fff, 0x7f7f), Uint16Array.of(0, 0x7f7f)];
  sumInPlace(sources);
  assert.deepEqual([...fromBf16(sources[0])], [NaN, Infinity]);
});
