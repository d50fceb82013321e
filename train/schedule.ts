/** The learning rate as a pure function of the update's number. It knows no optimizer. */

export interface ScheduleOptions {
  readonly schedule: "cosine" | "linear" | "constant";
  /** Updates in the whole run. */
  readonly steps: number;
  /** Updates in which the rate rises in a straight line from 1/warmup of the peak to the peak. */
  readonly warmup: number;
  /** The peak. */
  readonly learningRate: number;
  /** What the rate falls towards by the end of the run; `constant` never falls. */
  readonly minLearningRate: number;
}

/**
 * The rate of update `step`, counted from 1. The first update after the warm-up has the peak; the decay (half a cosine,
 * Loshchilov and Hutter 2017, or a line) would arrive at the minimum with the update after the last.
 */
export function learningRateAt(step: number, options: ScheduleOptions): number {
  const { schedule, steps, warmup, learningRate, minLearningRate } = options;
  if (step <= warmup) return learningRate * step / warmup;
  if (schedule === "constant") return learningRate;
  const progress = Math.min(1, (step - 1 - warmup) / Math.max(1, steps - warmup));
  const left = schedule === "linear" ? 1 - progress : (1 + Math.cos(Math.PI * progress)) / 2;
  return minLearningRate + (learningRate - minLearningRate) * left;
}
