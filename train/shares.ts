/**
 * How the rows of an update are divided: into microbatches, and these over ranks. Pure. What is learned hangs on the rows of
 * an update and their order alone, so neither division changes it but by rounding.
 */
import { UserError } from "../model/errors.ts";
import type { Config } from "./config.ts";

/** An update's rows by microbatches. */
export interface UpdateShape {
  /** Rows of a microbatch: --micro-batch, or less where ranks would else have none. */
  readonly rows: number;
  /** Microbatches of an update, over all ranks. */
  readonly microbatches: number;
}

/** Rows of an update. */
export function rowsOf({ microBatch, batchTokens, context }: Rows): number {
  return batchTokens === 0 ? microBatch : batchTokens / context;
}

type Rows = Pick<Config, "microBatch" | "batchTokens" | "context">;

/**
 * The largest microbatches, --micro-batch at most, of which every rank gets one.
 *
 * @throws UserError where an update has fewer rows than there are ranks.
 */
export function updateShape(config: Rows, ranks: number): UpdateShape {
  const { microBatch, context } = config;
  const all = rowsOf(config);
  if (all < ranks) {
    throw new UserError(
      `Cannot share ${all} rows an update among ${ranks} ranks: raise --batch-tokens to ${ranks * context} at least, ` +
        "or choose fewer by --ranks or --adapters",
    );
  }
  let rows = microBatch;
  while (microBatch % rows !== 0 || all / rows < ranks) rows--;
  return { rows, microbatches: all / rows };
}

/**
 * Microbatches [from, to) of each rank, back to back, in proportion to speeds: each share is the nearest below, and what is
 * left goes to those who then finish first.
 */
export function shares(microbatches: number, speeds: readonly number[]): readonly (readonly [number, number])[] {
  const total = speeds.reduce((sum, speed) => sum + speed, 0);
  const counts = speeds.map((speed) => Math.floor(microbatches * speed / total));
  for (let left = microbatches - counts.reduce((sum, count) => sum + count, 0); left > 0; left--) {
    const times = counts.map((count, rank) => (count + 1) / speeds[rank]);
    counts[times.indexOf(Math.min(...times))]++;
  }
  let from = 0;
  return counts.map((count) => [from, from += count] as const);
}
