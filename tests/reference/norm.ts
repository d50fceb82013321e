/** Layer norm and RMS norm in f64, as their papers write them. */

/** Rows of `columns` normed: (x - mean) / √(variance + eps) · weight + bias; without bias the mean stays (RMS norm). */
export function norm(x: Float64Array, weight: Float64Array, bias: Float64Array | null, eps: number): Float64Array {
  const columns = weight.length;
  const y = new Float64Array(x.length);
  for (let base = 0; base < x.length; base += columns) {
    let mean = 0;
    if (bias !== null) { for (let c = 0; c < columns; c++) mean += x[base + c] / columns; }
    let variance = 0;
    for (let c = 0; c < columns; c++) variance += (x[base + c] - mean) ** 2 / columns;
    for (let c = 0; c < columns; c++) {
      y[base + c] = (x[base + c] - mean) / Math.sqrt(variance + eps) * weight[c] + (bias?.[c] ?? 0);
    }
  }
  return y;
}
