/** Losses of single tokens under a model, for evaluation. The interface knows no GPU; `packTexts` fills its batches. */
import type { DenseBatch } from "../model/batch.ts";

/** A model that says how unlikely each target is. */
export interface Scorer extends AsyncDisposable {
  /** Flat rows of a batch. */
  readonly rows: number;
  /** Longest text. */
  readonly contextLength: number;
  /** (rows) -log p(target) in nats; 0 where a target is -100. */
  losses(batch: DenseBatch): Promise<Float32Array>;
}

/** Tokens of which the last `scored` are targets, each after all those before it. */
export interface ScoredText {
  readonly tokens: Uint32Array;
  readonly scored: number;
}

export interface PackedTexts {
  readonly batch: DenseBatch;
  /** Each text's sum, from the batch's losses, in the texts' order. */
  readonly sums: (losses: Float32Array) => number[];
}

/** Packs texts, each a document of its own, into batches of flat rows. @throws RangeError for a text longer than a batch. */
export function packTexts(texts: readonly ScoredText[], rows: number): PackedTexts[] {
  const groups: ScoredText[][] = [];
  let used = Infinity;
  for (const text of texts) {
    const length = text.tokens.length - 1;
    if (length > rows) throw new RangeError(`Cannot score ${length + 1} tokens at once: a batch has ${rows} rows`);
    if (used + length > rows) {
      groups.push([]);
      used = 0;
    }
    groups[groups.length - 1].push(text);
    used += length;
  }
  return groups.map((group) => packGroup(group, rows));
}

function packGroup(texts: readonly ScoredText[], rows: number): PackedTexts {
  const tokens = new Uint32Array(rows);
  const targets = new Int32Array(rows).fill(-100);
  const positions = new Uint32Array(rows);
  const starts = new Uint32Array(rows);
  const spans: [from: number, to: number][] = [];
  let at = 0;
  for (const { tokens: text, scored } of texts) {
    const length = text.length - 1;
    for (let i = 0; i < length; i++) {
      tokens[at + i] = text[i];
      positions[at + i] = i;
      starts[at + i] = at;
      if (i >= length - scored) targets[at + i] = text[i + 1];
    }
    spans.push([at + length - scored, at + length]);
    at += length;
  }
  // Rows to spare are documents of one token each.
  for (let row = at; row < rows; row++) starts[row] = row;
  const validTargets = texts.reduce((sum, { scored }) => sum + scored, 0);
  return {
    batch: { tokens, targets, positions, starts, validTargets },
    sums: (losses) => spans.map(([from, to]) => losses.subarray(from, to).reduce((sum, loss) => sum + loss, 0)),
  };
}
