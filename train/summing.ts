/** Sums of arrays in the order they are given. It knows no rank and no memory. */
import type { Summands } from "./communicator.ts";
import { instantiateSumming } from "./summing_module.ts";

/** Bytes of each array that are summed at once: what is copied in and out then stays in a processor's first caches. */
const BLOCK_BYTES = 1 << 15;
const PAGE_BYTES = 1 << 16;

const { memory, sumF32, sumBf16 } = instantiateSumming();

/**
 * Writes ((a + b) + c) + … of arrays of one type and length into each of them, rounded to f32 after each addition, and bf16
 * values (bit patterns in a Uint16Array) to bf16 at the end.
 */
export function sumInPlace(arrays: readonly Summands[]): void {
  const [{ length, byteLength, BYTES_PER_ELEMENT }] = arrays;
  const bytes = Math.min(BLOCK_BYTES, Math.ceil(byteLength / 64) * 64);
  const pages = Math.ceil(arrays.length * bytes / PAGE_BYTES) - memory.buffer.byteLength / PAGE_BYTES;
  if (pages > 0) memory.grow(pages);
  const isF32 = arrays[0] instanceof Float32Array;
  const View = isF32 ? Float32Array : Uint16Array;
  const sum = isF32 ? sumF32 : sumBf16;
  const most = bytes / BYTES_PER_ELEMENT;
  const blocks = arrays.map((_, i) => new View(memory.buffer, i * bytes, most));
  for (let from = 0; from < length; from += most) {
    const to = Math.min(from + most, length);
    arrays.forEach((array, i) => blocks[i].set(array.subarray(from, to)));
    sum(arrays.length, bytes);
    const summed = blocks[0].subarray(0, to - from);
    for (const array of arrays) array.set(summed, from);
  }
}
