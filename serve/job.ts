/** From a parsed request to work for the engine: prompts become ids, fields become sampling settings. Knows no HTTP and makes no text. */
import type { Engine, Sampling, TokenLogprob } from "../model/generate.ts";
import type { Tokenizer } from "../model/tokenizer.ts";
import type { Chat } from "./chat.ts";
import { RequestError } from "./errors.ts";
import type { CompletionRequest } from "./protocol.ts";
import { bytesOf } from "./stream.ts";

/** What answers requests. */
export interface ServedModel {
  /** What requests call it. */
  readonly name: string;
  readonly engine: Engine;
  readonly tokenizer: Tokenizer;
  /** Tokens that end a text; the tokenizer's end-of-text token where missing. */
  readonly stopTokens?: readonly number[];
  /** How it wants conversations written; without it, it completes texts only. */
  readonly chat?: Chat;
  /** Whether a request would be answered now; always, where missing. */
  healthy?(): boolean;
}

/** One text to generate. */
export interface Task {
  readonly index: number;
  readonly prompt: Prompt;
  readonly sampling: Sampling;
}

export interface Prompt {
  /** What the model sees. */
  readonly tokens: Uint32Array;
  /** What an echo shows: not the end-of-text token put before an empty prompt. */
  readonly shown: Uint32Array;
  /** Log-probabilities of the shown tokens; asked for once, by the first choice that needs them. */
  scores(): Promise<readonly (TokenLogprob | null)[]>;
}

/** A request made ready for the engine. */
export interface Job {
  readonly model: ServedModel;
  readonly request: CompletionRequest;
  readonly tasks: readonly Task[];
  readonly promptTokens: number;
}

/** More texts than this in one request are refused. */
const maxChoices = 1024;

/** Checks a request against the model. Throws RequestError for an id out of range, a prompt too long, too many choices. */
export function prepare(model: ServedModel, request: CompletionRequest): Job {
  const count = request.prompt.length * request.n;
  if (count > maxChoices) {
    throw new RequestError(400, `Ask for at most ${maxChoices} choices at once, not ${count}`, "n");
  }
  for (const token of request.logit_bias.keys()) {
    if (token >= model.engine.vocabSize) throw outOfRange(token, model, "logit_bias");
  }
  for (const token of request.stop_token_ids) {
    if (token >= model.engine.vocabSize) throw outOfRange(token, model, "stop_token_ids");
  }
  if (request.min_tokens > request.max_tokens) {
    const { min_tokens, max_tokens } = request;
    throw new RequestError(400, `Lower min_tokens: it is ${min_tokens}, and max_tokens ${max_tokens}`, "min_tokens");
  }
  const prompts = request.prompt.map((input) => toPrompt(model, request, input));
  return {
    model,
    request,
    promptTokens: prompts.reduce((sum, { tokens }) => sum + tokens.length, 0),
    tasks: prompts.flatMap((prompt, p) =>
      subSeeds(request).map((seed, i) => ({
        index: p * request.n + i,
        prompt,
        sampling: toSampling(model, request, seed),
      }))
    ),
  };
}

/** The refusal of a token id that the model hasn't. */
export function outOfRange(token: number, model: ServedModel, param: string): RequestError {
  return new RequestError(
    400,
    `Use token ids from 0 to ${model.engine.vocabSize - 1} in ${param}: ${token} is none`,
    param,
  );
}

function toPrompt(model: ServedModel, request: CompletionRequest, input: string | number[]): Prompt {
  const { engine, tokenizer } = model;
  const bad = typeof input === "string" ? undefined : input.find((token) => token >= engine.vocabSize);
  if (bad !== undefined) throw outOfRange(bad, model, "prompt");
  const shown = typeof input === "string" ? encodePrompt(model, input) : Uint32Array.from(input);
  const unknown = shown.find((token) => token >= engine.vocabSize);
  if (unknown !== undefined) throw outOfRange(unknown, model, "prompt");
  const start = tokenizer.endOfText ?? Infinity;
  if (shown.length === 0 && start >= engine.vocabSize) {
    throw new RequestError(400, "Give a prompt: this model has no token to begin with", "prompt");
  }
  const tokens = shown.length > 0 ? shown : Uint32Array.of(start);
  const wanted = tokens.length + request.max_tokens;
  if (wanted > engine.contextLength) {
    throw new RequestError(
      400,
      `Shorten the prompt or lower max_tokens: ${tokens.length} prompt tokens and ${request.max_tokens} to generate are ` +
        `${wanted}, and this model's maximum context length is ${engine.contextLength}`,
      "max_tokens",
      "context_length_exceeded",
    );
  }
  const top = Math.max(request.logprobs ?? 0, request.prompt_logprobs ?? 0);
  let scores: Promise<readonly (TokenLogprob | null)[]> | undefined;
  return {
    tokens,
    shown,
    scores: () => scores ??= shown.length > 0 ? engine.score(shown, top) : Promise.resolve([]),
  };
}

/** The tokens of a prompt's text, special ones among them. */
export function encodePrompt(model: ServedModel, text: string): Uint32Array {
  checkLength(text, model);
  return model.tokenizer.encode(text, { allowSpecial: true });
}

const longestTokens = new WeakMap<Tokenizer, number>();

/** Refuses a text that would be too long even in the longest tokens, before time is spent on encoding it. */
function checkLength(text: string, { engine, tokenizer }: ServedModel): void {
  let longest = longestTokens.get(tokenizer);
  if (longest === undefined) {
    longest = 1;
    for (let id = 0; id < tokenizer.vocabSize; id++) longest = Math.max(longest, bytesOf(tokenizer, id).length);
    longestTokens.set(tokenizer, longest);
  }
  const least = Math.ceil(text.length / longest);
  if (least <= engine.contextLength) return;
  throw new RequestError(
    400,
    `Shorten the prompt: its ${text.length} characters are at least ${least} tokens, and this model's maximum context length ` +
      `is ${engine.contextLength}`,
    "prompt",
    "context_length_exceeded",
  );
}

/** Seeds of the n choices of a prompt: seed, seed + 1, … modulo 2^32, the same for each prompt of a list; random without a seed. */
function subSeeds({ seed, n }: CompletionRequest): number[] {
  return Array.from({ length: n }, (_, i) => {
    if (seed == null) return crypto.getRandomValues(new Uint32Array(1))[0];
    return Number(BigInt.asUintN(32, BigInt(seed) + BigInt(i)));
  });
}

function toSampling(model: ServedModel, request: CompletionRequest, seed: number): Sampling {
  const { endOfText } = model.tokenizer;
  const ends = request.ignore_eos ? [] : model.stopTokens ?? (endOfText === undefined ? [] : [endOfText]);
  return {
    maxTokens: request.max_tokens,
    minTokens: request.min_tokens,
    temperature: request.top_p === 0 ? 0 : request.temperature, // the smallest set of likely tokens is the likeliest alone
    topP: request.top_p === 0 ? 1 : request.top_p,
    topK: Math.max(0, request.top_k),
    minP: request.min_p,
    seed,
    repetitionPenalty: request.repetition_penalty,
    presencePenalty: request.presence_penalty,
    frequencyPenalty: request.frequency_penalty,
    logitBias: request.logit_bias,
    stopTokens: [...new Set([...ends, ...request.stop_token_ids])],
    logprobs: request.logprobs ?? 0,
  };
}
