/** From logits to chosen tokens: the part of a graph that every engine ends in, and the data it wants. It knows no cache. */
import type { Graph, Tensor } from "../kernels/gpu/graph.ts";
import type { Program } from "../kernels/gpu/program.ts";
import { adjustLogits, NO_TOKEN, sample, SEEN, topLogprobs } from "../kernels/sample.ts";
import type { Sampling, TokenLogprob } from "./generate.ts";

/** Alternatives a graph reports where any are wanted: the most that OpenAI's API asks for. */
export const TOP_LOGPROBS = 20;

/** Added to the logit of a token that must not be chosen: far below all others, and finite, as kernels want their numbers. */
const MASKED = -1e30;

/** What choosing needs besides temperature and truncation; each wish is another graph. */
export interface Wishes {
  /** Penalties or bias. */
  readonly adjust: boolean;
  /** Log-probabilities of the most likely tokens. */
  readonly top: boolean;
}

/** Which graph these settings need. */
export function wishesOf(sampling: Sampling): Wishes {
  const { repetitionPenalty, presencePenalty, frequencyPenalty, logitBias, logprobs } = sampling;
  const { minTokens, stopTokens } = sampling;
  const penalties = repetitionPenalty !== 1 || presencePenalty !== 0 || frequencyPenalty !== 0;
  const adjust = penalties || logitBias.size > 0 || (minTokens > 0 && stopTokens.length > 0);
  return { adjust, top: logprobs > 0 };
}

export interface SamplingGraphOptions {
  /** Tokens of a row that may be adjusted. Default: all of the vocabulary. */
  readonly entries?: number;
  /** In place of the input `settings`. */
  readonly settings?: Tensor;
}

/**
 * Adds choosing to a graph, a token a row. Inputs, S rows: `sampling` (S, 4) f32, `settings` (S, 4) u32 and, to adjust,
 * `adjust_tokens`, `adjust_counts` (S, M) u32, `adjust_biases` (S, M) f32, `penalties` (S, 4) f32, M the entries.
 *
 * @param logits (S, V padded).
 */
export function samplingGraph(
  graph: Graph,
  logits: Tensor,
  vocabulary: number,
  { adjust, top }: Wishes,
  { entries = vocabulary, settings }: SamplingGraphOptions = {},
): Record<string, Tensor> {
  const [rows] = logits.shape;
  const list = (name: string, dtype: "u32" | "f32") => graph.input(name, [rows, entries], dtype);
  const adjusted = !adjust ? logits : adjustLogits(logits, {
    tokens: list("adjust_tokens", "u32"),
    counts: list("adjust_counts", "u32"),
    biases: list("adjust_biases", "f32"),
    penalties: graph.input("penalties", [rows, 4]),
  }, vocabulary);
  const params = graph.input("sampling", [rows, 4]);
  const { tokens, logprobs } = sample(
    adjusted,
    params,
    settings ?? graph.input("settings", [rows, 4], "u32"),
    vocabulary,
  );
  if (!top) return { tokens, logprobs };
  const best = topLogprobs(adjusted, tokens, vocabulary, Math.min(TOP_LOGPROBS, vocabulary));
  return { tokens, logprobs, top_ids: best.ids, top_logprobs: best.logprobs };
}

/** The tokens of one sequence, counted for the penalties. */
export class History {
  readonly wishes: Wishes;
  readonly #counts = new Map<number, number>();
  #position = 0;

  constructor(prompt: Iterable<number>, readonly sampling: Sampling) {
    this.wishes = wishesOf(sampling);
    for (const token of prompt) this.#counts.set(token, 0);
  }

  /** Counts a generated token. */
  push(token: number): void {
    this.#counts.set(token, (this.#counts.get(token) ?? 0) + 1);
    this.#position++;
  }

  /** A row of `sampling`. */
  get params(): readonly number[] {
    const { temperature, topP, minP } = this.sampling;
    return [temperature, topP, minP, 0];
  }

  /** A row of `settings` for the next token. */
  get settings(): readonly number[] {
    const { topK, seed } = this.sampling;
    return [topK, seed >>> 0, Math.floor(seed / 2 ** 32) >>> 0, this.#position];
  }

  /** A row of `penalties`. */
  get penalties(): readonly number[] {
    const { repetitionPenalty, presencePenalty, frequencyPenalty } = this.sampling;
    return [repetitionPenalty, presencePenalty, frequencyPenalty, 0];
  }

  /** Tokens to adjust: each with its count and bias. None where nothing is wished. */
  adjustments(): { readonly token: number; readonly count: number; readonly bias: number }[] {
    if (!this.wishes.adjust) return [];
    const { logitBias, minTokens, stopTokens } = this.sampling;
    const masked = new Set(this.#position < minTokens ? stopTokens : []);
    return [...new Set([...this.#counts.keys(), ...logitBias.keys(), ...masked])].map((token) => {
      const count = this.#counts.get(token);
      const bias = masked.has(token) ? MASKED : logitBias.get(token) ?? 0;
      return { token, count: count === undefined ? 0 : (count | SEEN) >>> 0, bias };
    });
  }
}

/** Inputs of `samplingGraph` for the next token of each sequence; rows past them choose what nobody reads. */
export function samplingInputs(
  histories: readonly History[],
  rows: number,
  adjust?: { readonly entries: number },
): Record<string, ArrayBufferView> {
  const sampling = new Float32Array(rows * 4);
  const settings = new Uint32Array(rows * 4);
  histories.forEach((history, row) => {
    sampling.set(history.params, row * 4);
    settings.set(history.settings, row * 4);
  });
  return adjust === undefined
    ? { sampling, settings }
    : { sampling, settings, ...adjustmentInputs(histories, rows, adjust.entries) };
}

function adjustmentInputs(
  histories: readonly History[],
  rows: number,
  entries: number,
): Record<string, ArrayBufferView> {
  const tokens = new Uint32Array(rows * entries).fill(NO_TOKEN);
  const counts = new Uint32Array(rows * entries);
  const biases = new Float32Array(rows * entries);
  const penalties = new Float32Array(rows * 4);
  histories.forEach((history, row) => {
    penalties.set(history.penalties, row * 4);
    history.adjustments().forEach(({ token, count, bias }, entry) => {
      const at = row * entries + entry;
      [tokens[at], counts[at], biases[at]] = [token, count, bias];
    });
  });
  return { adjust_tokens: tokens, adjust_counts: counts, adjust_biases: biases, penalties };
}

/** What a program with a sampling graph chose in its last run, a row a choice, with as many alternatives as each row wants. */
export async function readChoices(
  program: Program,
  { top }: Wishes,
  alternatives: readonly number[],
): Promise<TokenLogprob[]> {
  const names = top ? ["tokens", "logprobs", "top_ids", "top_logprobs"] : ["tokens", "logprobs"];
  const [tokens, logprobs, ids, values] = await program.read(...names);
  const best = top ? ids.byteLength / tokens.byteLength : 0;
  return alternatives.map((wanted, row) => ({
    token: new Uint32Array(tokens)[row],
    logprob: new Float32Array(logprobs)[row],
    top: best === 0 ? [] : pairs(
      new Uint32Array(ids, row * best * 4, best),
      new Float32Array(values, row * best * 4, best),
      wanted,
    ),
  }));
}

/** The first `wanted` alternatives of a row. */
export function pairs(ids: Uint32Array, logprobs: Float32Array, wanted: number): { token: number; logprob: number }[] {
  return Array.from(ids.subarray(0, wanted), (token, i) => ({ token, logprob: logprobs[i] }));
}
