/** Sums of arrays in the order they are given. It knows no rank and no memory. */
import type { Summands } from "./communicator.ts";

/** Elements added at once: what is read and written then stays in a processor's first caches. */
const BLOCK = 2048;

const sums = new Float32Array(BLOCK);
// As i32: V8 computes with u32 above 2^31 as doubles.
const bits = new Int32Array(sums.buffer);
const term = new Float32Array(BLOCK);
const termBits = new Int32Array(term.buffer);

/**
 * Writes ((a + b) + c) + … of arrays of one type and length into each of them, rounded to f32 after each addition, and bf16
 * values (bit patterns in a Uint16Array) to bf16 at the end.
 */
export function sumInPlace(arrays: readonly Summands[]): void {
  const [first, ...others] = arrays;
  for (let from = 0; from < first.length; from += BLOCK) {
    const to = Math.min(first.length, from + BLOCK);
    if (first instanceof Float32Array) {
      for (const other of others) add(first, other as Float32Array, from, to);
    } else {
      widen(bits, first, from, to);
      for (const other of others) {
        widen(termBits, other as Uint16Array, from, to);
        add(sums, term, 0, to - from);
      }
      narrow(first, bits, from, to);
    }
    for (const other of others) other.set(first.subarray(from, to), from);
  }
}

// Each of these sees arrays of one type alone: a loop over mixed ones takes five times as long.

function add(sum: Float32Array, term: Float32Array, from: number, to: number): void {
  for (let i = from; i < to; i++) sum[i] += term[i];
}

function widen(into: Int32Array, values: Uint16Array, from: number, to: number): void {
  for (let i = from; i < to; i++) into[i - from] = values[i] << 16;
}

/** The upper halves of f32 bits, rounded to nearest even; NaN stays NaN. */
function narrow(into: Uint16Array, bits: Int32Array, from: number, to: number): void {
  for (let i = from; i < to; i++) {
    const value = bits[i - from];
    const isNaN = (value & 0x7fffffff) > 0x7f800000;
    into[i] = isNaN ? (value >> 16) | 0x40 : ((value + 0x7fff + ((value >> 16) & 1)) | 0) >> 16;
  }
}
