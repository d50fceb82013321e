/** The loss of a language model's head in f64, by plain loops: the truth for kernels/linear_cross_entropy.ts. */

export interface CrossEntropySizes {
  readonly columns: number;
  /** Columns of logits that count; rows of the weight from here on are padding. */
  readonly vocabulary: number;
}

/** -log p(target) of each row of hidden (N, columns) under weight (≥ vocabulary, columns); 0 for targets outside. */
export function rowLosses(
  hidden: Float64Array,
  weight: Float64Array,
  targets: ArrayLike<number>,
  { columns, vocabulary }: CrossEntropySizes,
): Float64Array {
  return Float64Array.from(targets, (target, row) => {
    if (target < 0 || target >= vocabulary) return 0;
    const logits = new Float64Array(vocabulary);
    for (let v = 0; v < vocabulary; v++) {
      for (let c = 0; c < columns; c++) logits[v] += hidden[row * columns + c] * weight[v * columns + c];
    }
    const top = logits.reduce((most, x) => Math.max(most, x), -Infinity);
    return Math.log(logits.reduce((sum, x) => sum + Math.exp(x - top), 0)) - (logits[target] - top);
  });
}

export interface CrossEntropyGradients {
  readonly dhidden: Float64Array;
  readonly dweight: Float64Array;
}

/** Gradients of scale times the sum of rowLosses. */
export function gradients(
  hidden: Float64Array,
  weight: Float64Array,
  targets: ArrayLike<number>,
  scale: number,
  { columns, vocabulary }: CrossEntropySizes,
): CrossEntropyGradients {
  const dhidden = new Float64Array(hidden.length);
  const dweight = new Float64Array(weight.length);
  const row = (matrix: Float64Array, index: number) => matrix.subarray(index * columns, (index + 1) * columns);
  for (let n = 0; n < targets.length; n++) {
    if (targets[n] < 0 || targets[n] >= vocabulary) continue;
    const logits = Float64Array.from({ length: vocabulary }, (_, v) => dot(row(hidden, n), row(weight, v)));
    const top = logits.reduce((most, x) => Math.max(most, x), -Infinity);
    const sum = logits.reduce((total, x) => total + Math.exp(x - top), 0);
    for (let v = 0; v < vocabulary; v++) {
      const dlogit = scale * (Math.exp(logits[v] - top) / sum - (v === targets[n] ? 1 : 0));
      for (let c = 0; c < columns; c++) {
        dhidden[n * columns + c] += dlogit * weight[v * columns + c];
        dweight[v * columns + c] += dlogit * hidden[n * columns + c];
      }
    }
  }
  return { dhidden, dweight };
}

function dot(a: Float64Array, b: Float64Array): number {
  return a.reduce((sum, x, i) => sum + x * b[i], 0);
}
