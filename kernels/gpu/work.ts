/** What a program will do in a run, summed from its calls: operations, bytes, launches. Pure; it knows no op. */
import type { Step } from "./plan.ts";

/** What an adapter does in a second. */
export interface Rates {
  readonly flops: number;
  readonly bytes: number;
}

export interface Work {
  readonly flops: number;
  readonly dispatches: number;
  /** Seconds of a run where each call takes as long as its operations or its bytes do, whichever is longer. */
  seconds(rates: Rates): number;
}

export function workOf(steps: readonly Step[]): Work {
  const costs = steps.map(({ call }) => call.op.cost(call));
  return {
    flops: costs.reduce((sum, { flops }) => sum + flops, 0),
    dispatches: steps.reduce((sum, { dispatches }) => sum + dispatches.length, 0),
    seconds: (rates) =>
      costs.reduce((sum, { flops, bytes }) => sum + Math.max(flops / rates.flops, bytes / rates.bytes), 0),
  };
}
