/** Attention over a paged cache in f64, by plain loops. */

export interface PagedReference {
  readonly rows: number;
  readonly heads: number;
  readonly keyHeads: number;
  readonly width: number;
  readonly scale: number;
  readonly blockSize: number;
  readonly blocks: number;
  /** (sequences, blocks), flat. */
  readonly blockTable: ArrayLike<number>;
  readonly sequences: ArrayLike<number>;
  readonly positions: ArrayLike<number>;
}

/** o (N, H, D) from q (N, H, D) and caches (slots, KVH, D). */
export function pagedAttention(
  shape: PagedReference,
  q: ArrayLike<number>,
  keys: ArrayLike<number>,
  values: ArrayLike<number>,
): Float64Array {
  const { rows, heads, keyHeads, width, scale, blockSize, blocks, blockTable, sequences, positions } = shape;
  const o = new Float64Array(rows * heads * width);
  for (let row = 0; row < rows; row++) {
    for (let head = 0; head < heads; head++) {
      const keyHead = Math.floor(head / (heads / keyHeads));
      const query = (row * heads + head) * width;
      const slots = Array.from({ length: positions[row] + 1 }, (_, position) => {
        const block = blockTable[sequences[row] * blocks + Math.floor(position / blockSize)];
        return ((block * blockSize + position % blockSize) * keyHeads + keyHead) * width;
      });
      const scores = slots.map((at) => {
        let score = 0;
        for (let d = 0; d < width; d++) score += q[query + d] * keys[at + d];
        return score * scale;
      });
      const top = Math.max(...scores);
      const sum = scores.reduce((total, score) => total + Math.exp(score - top), 0);
      slots.forEach((at, i) => {
        for (let d = 0; d < width; d++) o[query + d] += Math.exp(scores[i] - top) / sum * values[at + d];
      });
    }
  }
  return o;
}
