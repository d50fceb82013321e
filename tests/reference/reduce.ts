/** Sums and gradient clipping in f64: the truth for kernels/reduce.ts. */

export function sumReference(x: Float64Array): number {
  return x.reduce((sum, value) => sum + value, 0);
}

export function sumOfSquaresReference(tensors: readonly Float64Array[]): number {
  return tensors.reduce((sum, x) => sum + x.reduce((part, value) => part + value * value, 0), 0);
}

/** Coefficient, norm, 1 where the norm is finite; the coefficient as torch.nn.utils.clip_grad_norm_ has it. */
export function clipReference(squared: number, maxNorm: number): [number, number, number] {
  const norm = Math.sqrt(squared);
  return Number.isFinite(norm) ? [Math.min(1, maxNorm / (norm + 1e-6)), norm, 1] : [0, norm, 0];
}
