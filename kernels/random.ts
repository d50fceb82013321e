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
const MULTIPLIER_0 = 0xd2511f53 | 0;
const MULTIPLIER_1 = 0xcd9e8d57 | 0;
const WEYL_0 = 0x9e3779b9 | 0;
const WEYL_1 = 0xbb67ae85 | 0;

/** Four random u32 of a counter and a key. */
export function philox([c0, c1, c2, c3]: Counter, [k0, k1]: Key): [number, number, number, number] {
  const words = new Uint32Array(4);
  philoxInto(words, c0, c1, c2, c3, k0, k1);
  return [words[0], words[1], words[2], words[3]];
}

/** The same without allocating: all arithmetic is in i32, which engines keep in registers. */
function philoxInto(
  words: Uint32Array | Int32Array,
  c0: number,
  c1: number,
  c2: number,
  c3: number,
  k0: number,
  k1: number,
): void {
  for (let round = 0; round < ROUNDS; round++) {
    const high0 = multiplyHigh(MULTIPLIER_0, c0);
    const high1 = multiplyHigh(MULTIPLIER_1, c2);
    const low0 = Math.imul(MULTIPLIER_0, c0);
    const low1 = Math.imul(MULTIPLIER_1, c2);
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 = (k0 + WEYL_0) | 0;
    k1 = (k1 + WEYL_1) | 0;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

/** The upper word of a product of two u32, as i32. */
function multiplyHigh(a: number, b: number): number {
  const aHigh = a >>> 16;
  const aLow = a & 0xffff;
  const bHigh = b >>> 16;
  const bLow = b & 0xffff;
  // Each sum stays below 2^32, so its lower 32 bits are all of it.
  const middle = (Math.imul(aHigh, bLow) + (Math.imul(aLow, bLow) >>> 16)) | 0;
  const low = (Math.imul(aLow, bHigh) + (middle & 0xffff)) | 0;
  return (Math.imul(aHigh, bHigh) + (middle >>> 16) + (low >>> 16)) | 0;
}

/** A number in [0, 1) of the upper 24 bits: exact in f32. */
export function uniformOf(bits: number): number {
  return (bits >>> 8) / 0x1000000;
}

/**
 * Standard normal numbers by Box and Muller's transform; the same seed and stream give the same bits.
 *
 * @param stream keeps independent sequences of one seed apart.
 * @param from where in the sequence to begin: a multiple of 4.
 */
export function normals(seed: number, stream: number, count: number, from = 0): Float32Array {
  if (from % 4 !== 0) throw new RangeError(`Cannot make normal numbers from ${from} on: wanted a multiple of 4`);
  const result = new Float32Array(Math.ceil(count / 4) * 4);
  const bits = new Int32Array(4);
  const [low, high] = [seed | 0, Math.floor(seed / 2 ** 32) | 0];
  for (let i = 0; i < count; i += 4) {
    philoxInto(bits, ((from + i) / 4) | 0, stream | 0, 0, 0, low, high);
    normalPair(result, i, bits[0], bits[1]);
    normalPair(result, i + 2, bits[2], bits[3]);
  }
  return result.subarray(0, count);
}

/**
 * r cos φ and r sin φ with r = √(-2 ln u): u is (a + 1) / 2^32, φ is b / 2^32 turns. The quarter turn nearest to φ is taken
 * off exactly, in integers; the rest, within π/4, goes through fdlibm's polynomials for sine and cosine (k_sin.c, k_cos.c).
 */
function normalPair(result: Float32Array, at: number, a: number, b: number): void {
  const radius = Math.sqrt(-2 * Math.log(((a >>> 0) + 1) / 2 ** 32));
  const quarter = (b + 0x2000_0000) >> 30;
  const x = ((b - (quarter << 30)) | 0) * (2 * Math.PI / 2 ** 32);
  const z = x * x;
  const sine = radius * (x + x * z * (S1 + z * (S2 + z * (S3 + z * (S4 + z * (S5 + z * S6))))));
  const cosine = radius * (1 - 0.5 * z + z * z * (C1 + z * (C2 + z * (C3 + z * (C4 + z * (C5 + z * C6))))));
  const odd = (quarter & 1) !== 0;
  const horizontal = odd ? sine : cosine;
  const vertical = odd ? cosine : sine;
  result[at] = ((quarter + 1) & 2) !== 0 ? -horizontal : horizontal;
  result[at + 1] = (quarter & 2) !== 0 ? -vertical : vertical;
}

const S1 = -1.66666666666666324348e-01;
const S2 = 8.33333333332248946124e-03;
const S3 = -1.98412698298579493134e-04;
const S4 = 2.75573137070700676789e-06;
const S5 = -2.50507602534068634195e-08;
const S6 = 1.58969099521155010221e-10;
const C1 = 4.16666666666666019037e-02;
const C2 = -1.38888888888741095749e-03;
const C3 = 2.48015872894767294178e-05;
const C4 = -2.75573143513906633035e-07;
const C5 = 2.08757232129817482790e-09;
const C6 = -1.13596475577881948265e-11;
