/**
 * Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel Random Numbers: As Easy as 1, 2,
 * 3"), the same bits in WGSL and here. A number depends on its counter and key alone, so that nothing is stored and
 * nothing depends on order. It knows no distribution but the uniform and the normal one.
 */
import philoxSource from "./random.wgsl" with { type: "text" };

/** `fn philox(counter: vec4u, key: vec2u) -> vec4u` and `fn uniform_of(bits: u32) -> f32`, in [0, 1). */
export const PHILOX_WGSL = philoxSource;

/** Four words. */
export type Counter = readonly [number, number, number, number];
/** Two words. */
export type Key = readonly [number, number];

const ROUNDS = 10;
const MULTIPLIER = [0xd2511f53, 0xcd9e8d57] as const;
const WEYL = [0x9e3779b9, 0xbb67ae85] as const;

/** Four random u32 of a counter and a key. */
export function philox([c0, c1, c2, c3]: Counter, [k0, k1]: Key): [number, number, number, number] {
  for (let round = 0; round < ROUNDS; round++) {
    const high0 = multiplyHigh(MULTIPLIER[0], c0);
    const high1 = multiplyHigh(MULTIPLIER[1], c2);
    const low0 = Math.imul(MULTIPLIER[0], c0) >>> 0;
    const low1 = Math.imul(MULTIPLIER[1], c2) >>> 0;
    [c0, c1, c2, c3] = [(high1 ^ c1 ^ k0) >>> 0, low1, (high0 ^ c3 ^ k1) >>> 0, low0];
    k0 = (k0 + WEYL[0]) >>> 0;
    k1 = (k1 + WEYL[1]) >>> 0;
  }
  return [c0, c1, c2, c3];
}

/** The upper word of a product of two u32. */
function multiplyHigh(a: number, b: number): number {
  const [aHigh, aLow, bHigh, bLow] = [a >>> 16, a & 0xffff, b >>> 16, b & 0xffff];
  const middle = aHigh * bLow + Math.floor(aLow * bLow / 0x10000);
  return (aHigh * bHigh + Math.floor((aLow * bHigh + middle % 0x10000) / 0x10000) + Math.floor(middle / 0x10000)) >>> 0;
}

/** A number in [0, 1) of the upper 24 bits: exact in f32. */
export function uniformOf(bits: number): number {
  return (bits >>> 8) / 0x1000000;
}

/**
 * Standard normal numbers by Box and Muller's transform; the same seed and stream give the same bits.
 *
 * @param stream keeps independent sequences of one seed apart.
 */
export function normals(seed: number, stream: number, count: number): Float32Array {
  const result = new Float32Array(count);
  const key: Key = [seed >>> 0, Math.floor(seed / 2 ** 32) >>> 0];
  for (let i = 0; i < count; i += 4) {
    const bits = philox([i / 4, stream >>> 0, 0, 0], key);
    for (let pair = 0; pair < 4; pair += 2) {
      const radius = Math.sqrt(-2 * Math.log((bits[pair] + 1) / 2 ** 32));
      const angle = 2 * Math.PI * bits[pair + 1] / 2 ** 32;
      if (i + pair < count) result[i + pair] = radius * Math.cos(angle);
      if (i + pair + 1 < count) result[i + pair + 1] = radius * Math.sin(angle);
    }
  }
  return result;
}
