/** Seeded order: which documents are held out and in which order rows are seen. It knows no file and no token. */

/** Mixes three words into 32 evenly spread bits (the finaliser of MurmurHash3, Appleby 2011, after each word). */
export function hash32(a: number, b: number, c = 0): number {
  let h = mix(Math.imul(a, 0x9e3779b1) ^ 0x85ebca6b);
  h = mix(h ^ Math.imul(b, 0xc2b2ae35));
  return mix(h ^ Math.imul(c, 0x27d4eb2f));
}

function mix(value: number): number {
  let h = value >>> 0;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

/** xoshiro128** (Blackman and Vigna 2018), seeded by hashing: 32 bits a call. */
export function generator(seed: number, stream: number): () => number {
  let [a, b, c, d] = [1, 2, 3, 4].map((word) => hash32(seed, stream, word));
  return () => {
    const result = Math.imul(rotate(Math.imul(b, 5), 7), 9) >>> 0;
    const t = b << 9;
    c ^= a;
    d ^= b;
    b ^= c;
    a ^= d;
    c ^= t;
    d = rotate(d, 11);
    return result;
  };
}

function rotate(value: number, by: number): number {
  return (value << by) | (value >>> (32 - by));
}

/** A permutation of 0..length-1 for one epoch (Fisher and Yates), the same for the same seed on any machine. */
export function permutation(length: number, seed: number, epoch: number): Uint32Array {
  const random = generator(seed, epoch);
  const order = Uint32Array.from({ length }, (_, index) => index);
  for (let last = length - 1; last > 0; last--) {
    const other = Math.floor(random() * (last + 1) / 2 ** 32);
    const kept = order[last];
    order[last] = order[other];
    order[other] = kept;
  }
  return order;
}

/** Whether a document is held out for validation: by its index and a seed, so that it doesn't depend on anything else. */
export function heldOut(document: number, seed: number, fraction: number): boolean {
  return hash32(seed, document % 2 ** 32, Math.floor(document / 2 ** 32)) < fraction * 2 ** 32;
}
