/** Matrix products in f64, by plain loops: the truth for kernels/matmul.ts and kernels/column_sum.ts. */

export interface MatmulSizes {
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly transposeA?: boolean;
  readonly transposeB?: boolean;
}

/** C (m, n) = A B + bias (n), with A stored (k, m) or B stored (n, k) where transposed. */
export function matmul(
  a: Float64Array,
  b: Float64Array,
  { m, n, k, transposeA, transposeB }: MatmulSizes,
  bias?: Float64Array,
): Float64Array {
  const c = new Float64Array(m * n);
  for (let row = 0; row < m; row++) {
    for (let column = 0; column < n; column++) {
      let sum = bias?.[column] ?? 0;
      for (let i = 0; i < k; i++) {
        sum += a[transposeA ? i * m + row : row * k + i] * b[transposeB ? column * k + i : i * n + column];
      }
      c[row * n + column] = sum;
    }
  }
  return c;
}

/** Sums of the columns of x (rows, columns). */
export function columnSum(x: Float64Array, columns: number): Float64Array {
  const sums = new Float64Array(columns);
  x.forEach((value, i) => sums[i % columns] += value);
  return sums;
}
