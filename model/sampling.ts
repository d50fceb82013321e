/** From logits to chosen tokens: the part of a graph that every engine ends in, and the data it wants. It knows no cache. */
import type { Graph, Tensor } from "../kernels/gpu/graph.ts";
import type { Program } from "../kernels/gpu/program.ts";
import { adjustLogits, NO_TOKEN, sample, SEEN, topLogprobs } from "../kernels/sample.ts";
import type { Sampling, TokenLogprob } from "./generate.ts";

/** Alternatives a graph reports where any are wanted: the most that OpenAI's API asks for. */
export const TOP_LOGPROBS = 20;

/** What a step of one row needs besides temperature and truncation; each wish is another graph. */
export interface Wishes {
  /** Penalties or bias. */
  readonly adjust: boolean;
  /** Log-probabilities of the most likely tokens. */
  readonly top: boolean;
}

/** Which graph these settings need. */
export function wishesOf(sampling: Sampling): Wishes {
  const { repetitionPenalty, presencePenalty, frequencyPenalty, logitBias, logprobs } = sampling;
  const adjust = repetitionPenalty !== 1 || presencePenalty !== 0 || frequencyPenalty !== 0 || logitBias.size > 0;
  return { adjust, top: logprobs > 0 };
}

/**
 * Adds choosing to a graph. Inputs: `sampling` (1, 4) f32, `settings` (1, 4) u32 and, to adjust, `adjust_tokens`,
 * `adjust_counts` (1, M) u32, `adjust_biases` (1, M) f32, `penalties` (1, 4) f32, with M the vocabulary's size.
 *
 * @param logits (1, V padded).
 * @param settings in place of the input `settings`.
 */
export function samplingGraph(
  graph: Graph,
  logits: Tensor,
  vocabulary: number,
  { adjust, top }: Wishes,
  settings: Tensor = graph.input("settings", [1, 4], "u32"),
): Record<string, Tensor> {
  const list = (name: string, dtype: "u32" | "f32") => graph.input(name, [1, vocabulary], dtype);
  const adjusted = !adjust ? logits : adjustLogits(logits, {
    tokens: list("adjust_tokens", "u32"),
    counts: list("adjust_counts", "u32"),
    biases: list("adjust_biases", "f32"),
    penalties: graph.input("penalties", [1, 4]),
  }, vocabulary);
  const params = graph.input("sampling", [1, 4]);
  const { tokens, logprobs } = sample(adjusted, params, settings, vocabulary);
  if (!top) return { tokens, logprobs };
  const best = topLogprobs(adjusted, tokens, vocabulary, Math.min(TOP_LOGPROBS, vocabulary));
  return { tokens, logprobs, top_ids: best.ids, top_logprobs: best.logprobs };
}

/** The tokens of one sequence, counted for the penalties. */
export class History {
  readonly #counts = new Map<number, number>();
  #position = 0;

  constructor(prompt: Iterable<number>, readonly sampling: Sampling) {
    for (const token of prompt) this.#counts.set(token, 0);
  }

  /** Counts a generated token. */
  push(token: number): void {
    this.#counts.set(token, (this.#counts.get(token) ?? 0) + 1);
    this.#position++;
  }

  /** Inputs of `samplingGraph` for the next token. */
  inputs(vocabulary: number, { adjust }: Wishes): Record<string, ArrayBufferView> & { settings: Uint32Array } {
    const { temperature, topP, minP, topK, seed } = this.sampling;
    const inputs = {
      sampling: new Float32Array([temperature, topP, minP, 0]),
      settings: new Uint32Array([topK, seed >>> 0, Math.floor(seed / 2 ** 32) >>> 0, this.#position]),
    };
    return adjust ? { ...inputs, ...this.#adjustments(vocabulary) } : inputs;
  }

  #adjustments(vocabulary: number): Record<string, ArrayBufferView> {
    const { repetitionPenalty, presencePenalty, frequencyPenalty, logitBias } = this.sampling;
    const tokens = new Uint32Array(vocabulary).fill(NO_TOKEN);
    const counts = new Uint32Array(vocabulary);
    const biases = new Float32Array(vocabulary);
    const named = new Set([...this.#counts.keys(), ...logitBias.keys()]);
    [...named].forEach((token, entry) => {
      const count = this.#counts.get(token);
      tokens[entry] = token;
      counts[entry] = count === undefined ? 0 : (count | SEEN) >>> 0;
      biases[entry] = logitBias.get(token) ?? 0;
    });
    const penalties = new Float32Array([repetitionPenalty, presencePenalty, frequencyPenalty, 0]);
    return { adjust_tokens: tokens, adjust_counts: counts, adjust_biases: biases, penalties };
  }
}

/** What a program with a sampling graph chose in its last run. */
export async function readChoice(program: Program, { top }: Wishes, alternatives: number): Promise<TokenLogprob> {
  const names = top ? ["tokens", "logprobs", "top_ids", "top_logprobs"] : ["tokens", "logprobs"];
  const [tokens, logprobs, ids, values] = await program.read(...names);
  return {
    token: new Uint32Array(tokens)[0],
    logprob: new Float32Array(logprobs)[0],
    top: top ? pairs(new Uint32Array(ids), new Float32Array(values), alternatives) : [],
  };
}

/** The first `wanted` alternatives of a row. */
export function pairs(ids: Uint32Array, logprobs: Float32Array, wanted: number): { token: number; logprob: number }[] {
  return Array.from(ids.subarray(0, wanted), (token, i) => ({ token, logprob: logprobs[i] }));
}
