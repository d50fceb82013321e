/** Dynamic loss scaling as torch.amp.GradScaler has it, in f64: the truth for kernels/loss_scale.ts. */
import { clipReference } from "./reduce.ts";

export interface LossScaleState {
  readonly scale: number;
  readonly streak: number;
  readonly applied: number;
  readonly skipped: number;
}

/** The unscaled loss, clip (4), AdamW's hyper (4), and the state after the update. */
export function unscaleReference(
  { squared, loss, learningRate }: { squared: number; loss: number; learningRate: number },
  { scale, streak, applied, skipped }: LossScaleState,
  options: { maxNorm: number; beta1: number; beta2: number; growthInterval: number },
): { loss: number; clip: number[]; hyper: number[]; state: LossScaleState } {
  const [coefficient, norm, finite] = clipReference(squared / scale ** 2, options.maxNorm);
  const t = applied + 1;
  const hyper = [learningRate, 1 - options.beta1 ** t, Math.sqrt(1 - options.beta2 ** t), 0];
  const grows = streak + 1 === options.growthInterval;
  const state = finite === 0
    ? { scale: Math.max(1, scale / 2), streak: 0, applied, skipped: skipped + 1 }
    : { scale: grows ? 2 * scale : scale, streak: grows ? 0 : streak + 1, applied: t, skipped };
  return { loss: loss / scale, clip: [coefficient / scale, norm, finite, 0], hyper, state };
}
