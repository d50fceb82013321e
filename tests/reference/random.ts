/** Philox4x32-10 in integers of any size, straight from the paper: the truth for kernels/random.ts. */

const WORD = 1n << 32n;

/** Salmon, Moraes, Dror, Shaw 2011, "Parallel Random Numbers: As Easy as 1, 2, 3", section 3.3. */
export function philoxReference(counter: readonly number[], key: readonly number[]): number[] {
  let [left0, right0, left1, right1] = counter.map(BigInt);
  let [key0, key1] = key.map(BigInt);
  for (let round = 0; round < 10; round++) {
    const product0 = 0xd2511f53n * left0;
    const product1 = 0xcd9e8d57n * left1;
    [left0, right0, left1, right1] = [
      (product1 / WORD) ^ right0 ^ key0,
      product1 % WORD,
      (product0 / WORD) ^ right1 ^ key1,
      product0 % WORD,
    ];
    key0 = (key0 + 0x9e3779b9n) % WORD;
    key1 = (key1 + 0xbb67ae85n) % WORD;
  }
  return [left0, right0, left1, right1].map(Number);
}
