/** Attention over document ranges in f64, forward and backward, by plain loops. */

export interface AttentionReference {
  readonly rows: number;
  readonly heads: number;
  readonly keyHeads: number;
  readonly width: number;
  readonly scale: number;
  readonly starts: ArrayLike<number>;
  /** What multiplies a probability: 0 or 1 / (1 - rate) with dropout. Default 1. */
  readonly factor?: (row: number, key: number, head: number) => number;
}

/** o (N, H, D) from q (N, H, D), k and v (N, KVH, D). */
export function attention(shape: AttentionReference, q: Float64Array, k: Float64Array, v: Float64Array): Float64Array {
  const { rows, heads, width } = shape;
  const o = new Float64Array(rows * heads * width);
  each(shape, q, k, ({ row, head, first, keyAt, probabilities }) => {
    for (let d = 0; d < width; d++) {
      let sum = 0;
      for (let key = first; key <= row; key++) {
        sum += probabilities[key - first] * factor(shape, row, key, head) * v[keyAt(key) + d];
      }
      o[(row * heads + head) * width + d] = sum;
    }
  });
  return o;
}

/** Base 2 logarithms of the sums of exponentials (N, H). */
export function attentionLse(shape: AttentionReference, q: Float64Array, k: Float64Array): Float64Array {
  const lse = new Float64Array(shape.rows * shape.heads);
  each(shape, q, k, ({ row, head, logSum }) => lse[row * shape.heads + head] = logSum * Math.LOG2E);
  return lse;
}

/** Gradients of q, k and v, given that of o. */
export function attentionGradients(
  shape: AttentionReference,
  q: Float64Array,
  k: Float64Array,
  v: Float64Array,
  dy: ArrayLike<number>,
): { dq: Float64Array; dk: Float64Array; dv: Float64Array } {
  const { heads, width, scale } = shape;
  const [dq, dk, dv] = [q, k, v].map((values) => new Float64Array(values.length));
  each(shape, q, k, ({ row, head, first, keyAt, probabilities }) => {
    const at = (row * heads + head) * width;
    const slopes = probabilities.map((probability, i) => {
      const f = factor(shape, row, first + i, head);
      let slope = 0;
      for (let d = 0; d < width; d++) {
        slope += dy[at + d] * v[keyAt(first + i) + d];
        dv[keyAt(first + i) + d] += probability * f * dy[at + d];
      }
      return slope * f;
    });
    const mean = slopes.reduce((sum, slope, i) => sum + slope * probabilities[i], 0);
    for (let key = first; key <= row; key++) {
      const change = probabilities[key - first] * (slopes[key - first] - mean) * scale;
      for (let d = 0; d < width; d++) {
        dq[at + d] += change * k[keyAt(key) + d];
        dk[keyAt(key) + d] += change * q[at + d];
      }
    }
  });
  return { dq, dk, dv };
}

interface Row {
  readonly row: number;
  readonly head: number;
  readonly first: number;
  /** Where a key's vector begins in k and v. */
  readonly keyAt: (key: number) => number;
  readonly probabilities: number[];
  readonly logSum: number;
}

function each(shape: AttentionReference, q: Float64Array, k: Float64Array, visit: (row: Row) => void): void {
  const { rows, heads, keyHeads, width, scale, starts } = shape;
  for (let row = 0; row < rows; row++) {
    for (let head = 0; head < heads; head++) {
      const keyHead = Math.floor(head / (heads / keyHeads));
      const keyAt = (key: number) => (key * keyHeads + keyHead) * width;
      const scores = Array.from({ length: row - starts[row] + 1 }, (_, i) => {
        let score = 0;
        for (let d = 0; d < width; d++) score += q[(row * heads + head) * width + d] * k[keyAt(starts[row] + i) + d];
        return score * scale;
      });
      const top = Math.max(...scores);
      const sum = scores.reduce((total, score) => total + Math.exp(score - top), 0);
      const probabilities = scores.map((score) => Math.exp(score - top) / sum);
      visit({ row, head, first: starts[row], keyAt, probabilities, logSum: top + Math.log(sum) });
    }
  }
}

function factor({ factor }: AttentionReference, row: number, key: number, head: number): number {
  return factor?.(row, key, head) ?? 1;
}
