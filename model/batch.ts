/** Rows of token ids as a model takes them: flat, checked, each row one document. It knows no GPU. */
import type { Gpt2Config } from "./gpt2_config.ts";

type Limits = Pick<Gpt2Config, "n_positions" | "vocab_size">;
type Ids = readonly (readonly number[])[];

/** Flat rows of whole documents; N of them. */
export interface DenseRows {
  readonly tokens: Uint32Array;
  /** Place of each row in its document. */
  readonly positions: Uint32Array;
  /** The row where each row's document starts. */
  readonly starts: Uint32Array;
}

/** Rows with their targets. */
export interface DenseBatch extends DenseRows {
  /** The id that follows each row, or -100 where none is asked for. */
  readonly targets: Int32Array;
  /** Targets other than -100. */
  readonly validTargets: number;
}

/**
 * Rows of equal length, each a document at positions 0…T-1.
 *
 * @param tokens (B, T) ids.
 * @throws RangeError for no or unequal rows, a T past the context or an id ≥ V.
 */
export function denseRows(limits: Limits, tokens: Ids): DenseRows {
  const length = tokens[0]?.length ?? 0;
  if (length === 0) throw new RangeError("Cannot run the model on no tokens: give at least one row of one id");
  if (length > limits.n_positions) {
    throw new RangeError(`Cannot run the model on ${length} tokens: its context is ${limits.n_positions}`);
  }
  const other = tokens.find((row) => row.length !== length);
  if (other !== undefined) {
    throw new RangeError(`Cannot batch rows of unequal length: found ${length} and ${other.length} tokens`);
  }
  const flat = tokens.flat();
  for (const id of flat) checkId(limits, id);
  return {
    tokens: Uint32Array.from(flat),
    positions: Uint32Array.from(flat, (_, row) => row % length),
    starts: Uint32Array.from(flat, (_, row) => row - row % length),
  };
}

/**
 * Rows and their targets.
 *
 * @param targets (B, T) ids or -100.
 * @throws RangeError as `denseRows`, and for targets of another shape than the tokens'.
 */
export function denseBatch(limits: Limits, tokens: Ids, targets: Ids): DenseBatch {
  const rows = denseRows(limits, tokens);
  if (targets.length !== tokens.length || targets.some((row, i) => row.length !== tokens[i].length)) {
    throw new RangeError(
      `Cannot use targets of another shape than the tokens' (${tokens.length}, ${tokens[0].length})`,
    );
  }
  const wanted = targets.flat();
  for (const id of wanted) if (id !== -100) checkId(limits, id);
  return { ...rows, targets: Int32Array.from(wanted), validTargets: wanted.filter((id) => id !== -100).length };
}

function checkId({ vocab_size: vocabulary }: Limits, id: number): void {
  if (!Number.isInteger(id) || id < 0 || id >= vocabulary) {
    throw new RangeError(`Cannot use token id ${id}: the vocabulary has ${vocabulary}`);
  }
}
