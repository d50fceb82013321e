/** torch.optim.AdamW in f64, by plain loops: the truth for kernels/adamw.ts. */

export interface AdamWReference {
  readonly parameter: Float64Array;
  readonly expAvg: Float64Array;
  readonly expAvgSq: Float64Array;
}

export interface AdamWSettings {
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  readonly weightDecay: number;
}

/** Step number t (from 1), in place. */
export function adamwReference(
  { parameter, expAvg, expAvgSq }: AdamWReference,
  gradient: ArrayLike<number>,
  { beta1, beta2, eps, weightDecay }: AdamWSettings,
  t: number,
  learningRate: number,
): void {
  for (let i = 0; i < parameter.length; i++) {
    parameter[i] *= 1 - learningRate * weightDecay;
    expAvg[i] = beta1 * expAvg[i] + (1 - beta1) * gradient[i];
    expAvgSq[i] = beta2 * expAvgSq[i] + (1 - beta2) * gradient[i] ** 2;
    const denominator = Math.sqrt(expAvgSq[i]) / Math.sqrt(1 - beta2 ** t) + eps;
    parameter[i] -= learningRate / (1 - beta1 ** t) * expAvg[i] / denominator;
  }
}
