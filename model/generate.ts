/** What generating means: sampling settings, the tokens that come out, and the engine interface. It knows no text and no HTTP. */

/** How the next token is chosen. */
export interface Sampling {
  /** Tokens to generate at most. */
  readonly maxTokens: number;
  /** Stop tokens can't be chosen before so many tokens were. */
  readonly minTokens: number;
  /** Divides the logits; 0 takes the most likely token. */
  readonly temperature: number;
  /** Nucleus: the smallest set of most likely tokens whose probability reaches it (Holtzman et al. 2019); 1 keeps all. */
  readonly topP: number;
  /** Keeps the k most likely tokens; 0 keeps all. */
  readonly topK: number;
  /** Keeps tokens at least this fraction as likely as the most likely one; 0 keeps all. */
  readonly minP: number;
  readonly seed: number;
  /** Divides positive and multiplies negative logits of tokens seen in prompt or output (Keskar et al. 2019); 1 is off. */
  readonly repetitionPenalty: number;
  /** Subtracted once from logits of tokens already generated. */
  readonly presencePenalty: number;
  /** Subtracted for each time a token was generated. */
  readonly frequencyPenalty: number;
  /** Added to the logits of these tokens. */
  readonly logitBias: ReadonlyMap<number, number>;
  /** Tokens that end the generation; the token itself is yielded last. */
  readonly stopTokens: readonly number[];
  /** How many of the most likely alternatives to report with each token. */
  readonly logprobs: number;
}

export const defaultSampling: Sampling = {
  maxTokens: 16,
  minTokens: 0,
  temperature: 1,
  topP: 1,
  topK: 0,
  minP: 0,
  seed: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  logitBias: new Map(),
  stopTokens: [],
  logprobs: 0,
};

/** A token with its natural log-probability under the model (after bias and penalties, before temperature and truncation). */
export interface TokenLogprob {
  readonly token: number;
  readonly logprob: number;
  /** The most likely tokens, best first. */
  readonly top: readonly { readonly token: number; readonly logprob: number }[];
}

/** One generated token; the last one of a generation says why it ended. */
export interface Generated extends TokenLogprob {
  readonly finish?: "stop" | "length";
}

/** What an engine is doing, and has done since it was made. */
export interface EngineStats {
  readonly running: number;
  readonly waiting: number;
  readonly blocks: number;
  readonly freeBlocks: number;
  readonly steps: number;
  /** Rows that were computed, each a token of a prompt or a chosen one. */
  readonly rows: number;
  /** Steps of at most 2^i rows, and more than the half of it, at index i. */
  readonly stepSizes: readonly number[];
  /** Tokens that were not computed because others had the same beginning. */
  readonly reusedTokens: number;
  /** How often a sequence gave way and was computed again. */
  readonly preemptions: number;
  /** How often it was opened again after a failure. */
  readonly restarts?: number;
}

/** Token ids in, token ids out. Knows nothing of text or HTTP. */
export interface Engine extends AsyncDisposable {
  /** Positions the model knows: prompt and generated tokens together. */
  readonly contextLength: number;
  readonly vocabSize: number;
  /** Texts that are generated at once; others wait. Unknown where missing. */
  readonly capacity?: number;
  readonly stats?: EngineStats;
  /** Yields tokens as they are chosen. Throws RangeError for an empty or too long prompt or an id out of range. */
  generate(prompt: Uint32Array, sampling: Sampling, signal?: AbortSignal): AsyncIterable<Generated>;
  /** Log-probability of each token given those before it; null for the first, which has none before it. */
  score(tokens: Uint32Array, top: number): Promise<readonly (TokenLogprob | null)[]>;
}

/** Throws RangeError for a prompt that an engine can't go on from. */
export function checkPrompt(engine: Pick<Engine, "contextLength" | "vocabSize">, prompt: Uint32Array): void {
  if (prompt.length === 0) throw new RangeError("Cannot generate from an empty prompt: give at least one token");
  if (prompt.length > engine.contextLength) {
    throw new RangeError(`Cannot use ${prompt.length} tokens: the model's context is ${engine.contextLength}`);
  }
  const unknown = prompt.find((id) => id >= engine.vocabSize);
  if (unknown !== undefined) {
    throw new RangeError(`Cannot use token id ${unknown}: the vocabulary has ${engine.vocabSize}`);
  }
}

/** A chosen token, with why it is the last one where it is: a stop token, the limit, or a context with no place left. */
export function generated(
  choice: TokenLogprob,
  { stopTokens, maxTokens }: Sampling,
  made: number,
  { full }: { readonly full: boolean },
): Generated {
  if (stopTokens.includes(choice.token)) return { ...choice, finish: "stop" };
  return made >= maxTokens || full ? { ...choice, finish: "length" } : choice;
}
