/** Choosing tokens in f64, by sorting: the truth for kernels/sample.ts. */

export interface Truncation {
  readonly temperature: number;
  /** 1 keeps all. */
  readonly topP: number;
  /** 0 keeps all. */
  readonly topK: number;
  /** 0 keeps all. */
  readonly minP: number;
}

/** Shares of a sum in f32 are known no better: the nucleus reaches p within this. */
const FORGIVEN = 1e-6;

/** Tokens from the highest logit down, equal ones by id. */
export function order(logits: ArrayLike<number>): number[] {
  return Array.from(logits, (_, id) => id).sort((a, b) => logits[b] - logits[a] || a - b);
}

/** Natural logarithms of the probabilities. */
export function logProbabilities(logits: ArrayLike<number>): Float64Array {
  const values = Float64Array.from(logits);
  const highest = values.reduce((most, x) => Math.max(most, x), -Infinity);
  const sum = values.reduce((all, x) => all + Math.exp(x - highest), 0);
  return values.map((x) => x - highest - Math.log(sum));
}

export interface Kept {
  readonly tokens: ReadonlySet<number>;
  /** How far the nucleus' end is from being another one, as a share of the mass; tests want it above rounding. */
  readonly margin: number;
}

/** The tokens that may be drawn: temperature, top-k, top-p of what is left, min-p. */
export function keptTokens(logits: ArrayLike<number>, { temperature, topP, topK, minP }: Truncation): Kept {
  const sorted = order(logits);
  if (temperature === 0) return { tokens: new Set([sorted[0]]), margin: 1 };
  const weight = (id: number) => Math.exp((logits[id] - logits[sorted[0]]) / temperature);
  let left = topK > 0 ? sorted.slice(0, topK) : sorted;
  let margin = 1;
  if (topP < 1) {
    const all = left.reduce((sum, id) => sum + weight(id), 0);
    const wanted = Math.fround(topP) * all * (1 - FORGIVEN);
    let sum = 0;
    let length = 0;
    while (length === 0 || sum < wanted) sum += weight(left[length++]);
    const last = weight(left[length - 1]);
    margin = length === 1 ? (sum - wanted) / all : Math.min(sum - wanted, wanted - (sum - last)) / all;
    left = left.slice(0, length);
  }
  return { tokens: new Set(left.filter((id) => weight(id) >= Math.fround(minP))), margin };
}

/**
 * How far u is from the share of the kept mass, in order of ids, that belongs to a token: 0 where u draws it, infinite for
 * one that isn't kept.
 */
export function drawError(
  logits: ArrayLike<number>,
  kept: ReadonlySet<number>,
  temperature: number,
  u: number,
  token: number,
): number {
  if (!kept.has(token)) return Infinity;
  if (kept.size === 1) return 0;
  let highest = -Infinity;
  for (const id of kept) highest = Math.max(highest, logits[id]);
  let all = 0;
  let before = 0;
  for (const id of kept) {
    const weight = Math.exp((logits[id] - highest) / temperature);
    all += weight;
    if (id < token) before += weight;
  }
  const after = before + Math.exp((logits[token] - highest) / temperature);
  return Math.max(0, before / all - u, u - after / all);
}

export interface Adjustment {
  readonly token: number;
  readonly count: number;
  readonly seen: boolean;
  readonly bias: number;
}

/** Logits after a row's penalties and bias. */
export function adjustedLogits(
  logits: ArrayLike<number>,
  adjustments: readonly Adjustment[],
  [repetition, presence, frequency]: readonly number[],
): Float64Array {
  const result = Float64Array.from(logits);
  for (const { token, count, seen, bias } of adjustments) {
    if (seen) result[token] = result[token] > 0 ? result[token] / repetition : result[token] * repetition;
    result[token] += bias - (count > 0 ? presence : 0) - frequency * count;
  }
  return result;
}
