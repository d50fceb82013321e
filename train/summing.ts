/** Sums of arrays in the order they are given. It knows no rank and no memory. */
import type { Summands } from "./communicator.ts";

/** Elements added at once: what is read and written then stays in a processor's first cache. */
const BLOCK = 2048;

const sums = new Float32Array(BLOCK);
const bits = new Uint32Array(sums.buffer);
const term = new Float32Array(BLOCK);
const termBits = new Uint32Array(term.buffer);

/**
 * Writes ((a + b) + c) + … of arrays of one type and length into each of them, rounded to f32 after each addition, and bf16
 * values (bit patterns in a Uint16Array) to bf16 at the end.
 */
export function sumInPlace(arrays: readonly Summands[]): void {
  const { length } = arrays[0];
  for (let from = 0; from < length; from += BLOCK) {
    const to = Math.min(length, from + BLOCK);
    if (arrays[0] instanceof Float32Array) sumF32(arrays as readonly Float32Array[], from, to);
    else sumBf16(arrays as readonly Uint16Array[], from, to);
  }
}

function sumF32(arrays: readonly Float32Array[], from: number, to: number): void {
  sums.set(arrays[0].subarray(from, to));
  for (const array of arrays.slice(1)) {
    for (let i = from; i < to; i++) sums[i - from] += array[i];
  }
  const sum = to - from === BLOCK ? sums : sums.subarray(0, to - from);
  for (const array of arrays) array.set(sum, from);
}

function sumBf16(arrays: readonly Uint16Array[], from: number, to: number): void {
  for (let i = from; i < to; i++) bits[i - from] = arrays[0][i] << 16;
  for (const array of arrays.slice(1)) {
    for (let i = from; i < to; i++) termBits[i - from] = array[i] << 16;
    for (let i = 0; i < to - from; i++) sums[i] += term[i];
  }
  for (let i = from; i < to; i++) arrays[0][i] = roundToBf16(bits[i - from]);
  for (const array of arrays.slice(1)) array.set(arrays[0].subarray(from, to), from);
}

/** The upper half of an f32's bits, rounded to nearest even; NaN stays NaN. */
function roundToBf16(bits: number): number {
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >>> 16) | 0x40;
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}
