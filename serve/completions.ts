/** From a parsed request to the pieces of its answer: prompts become ids, choices run side by side, tokens become text. Knows no HTTP. */
import type { Engine, Sampling, TokenLogprob } from "../model/generate.ts";
import type { Tokenizer } from "../model/tokenizer.ts";
import { type Choice, type CompletionRequest, type Logprobs, RequestError, type Usage } from "./protocol.ts";
import { bytesOf, createTextStream, type Piece, type TextStream, tokenText } from "./stream.ts";

/** What answers requests. */
export interface ServedModel {
  /** What requests call it. */
  readonly name: string;
  readonly engine: Engine;
  readonly tokenizer: Tokenizer;
  /** Tokens that end a text; the tokenizer's end-of-text token where missing. */
  readonly stopTokens?: readonly number[];
  /** Whether a request would be answered now; always, where missing. */
  healthy?(): boolean;
}

/** One text to generate. */
interface Task {
  readonly index: number;
  readonly prompt: Prompt;
  readonly sampling: Sampling;
}

interface Prompt {
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

/** A piece of the answer: the next text of one choice. */
export interface Delta extends Choice {
  /** Tokens generated since the last piece, hidden ones too. */
  readonly generated: number;
}

/** More texts than this in one request are refused. */
const maxChoices = 1024;

/** OpenAI's stand-in for a log-probability of minus infinity, which JSON can't say. */
const leastLogprob = -9999;

/** Checks a request against the model. Throws RequestError for an id out of range, a prompt too long, too many choices. */
export function prepare(model: ServedModel, request: CompletionRequest): Job {
  const count = request.prompt.length * request.n;
  if (count > maxChoices) {
    throw new RequestError(400, `Ask for at most ${maxChoices} choices at once, not ${count}`, "n");
  }
  for (const token of request.logit_bias.keys()) {
    if (token >= model.engine.vocabSize) throw outOfRange(token, model, "logit_bias");
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

function outOfRange(token: number, model: ServedModel, param: string): RequestError {
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
  if (typeof input === "string") checkLength(input, model);
  const shown = typeof input === "string" ? tokenizer.encode(input, { allowSpecial: true }) : Uint32Array.from(input);
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
  let scores: Promise<readonly (TokenLogprob | null)[]> | undefined;
  return {
    tokens,
    shown,
    scores: () => scores ??= shown.length > 0 ? engine.score(shown, request.logprobs ?? 0) : Promise.resolve([]),
  };
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
  return {
    maxTokens: request.max_tokens,
    temperature: request.top_p === 0 ? 0 : request.temperature, // the smallest set of likely tokens is the likeliest alone
    topP: request.top_p === 0 ? 1 : request.top_p,
    topK: Math.max(0, request.top_k),
    minP: request.min_p,
    seed,
    repetitionPenalty: request.repetition_penalty,
    presencePenalty: request.presence_penalty,
    frequencyPenalty: request.frequency_penalty,
    logitBias: request.logit_bias,
    stopTokens: model.stopTokens ?? (endOfText === undefined ? [] : [endOfText]),
    logprobs: request.logprobs ?? 0,
  };
}

/** Runs a job; yields pieces of all choices as they come. Ends early, without a word, when the signal is aborted. */
export async function* run(job: Job, signal: AbortSignal): AsyncGenerator<Delta> {
  const left = new AbortController();
  const either = AbortSignal.any([signal, left.signal]);
  try {
    yield* merge(job.tasks.map((task) => runTask(job, task, either)));
  } finally {
    left.abort();
  }
}

async function* runTask(job: Job, { index, prompt, sampling }: Task, signal: AbortSignal): AsyncGenerator<Delta> {
  const { model, request } = job;
  const text = createTextStream(model.tokenizer, request.stop);
  const record = createRecord(model.tokenizer, request.logprobs);
  let generated = 0;
  const delta = (released: Pick<ReturnType<TextStream["end"]>, "text" | "pieces">, finish: Choice["finish_reason"]) => {
    const piece = {
      text: released.text,
      index,
      logprobs: record.take(released.pieces),
      finish_reason: finish,
      generated,
    };
    generated = 0;
    return piece;
  };

  if (request.echo && prompt.shown.length > 0) {
    const scores = request.logprobs === undefined ? [] : await prompt.scores();
    const released = Array.from(prompt.shown, (token, i) => (record.add(scores[i] ?? null), text.echo(token)));
    yield delta({ text: released.map((r) => r.text).join(""), pieces: released.flatMap((r) => r.pieces) }, null);
  }
  if (sampling.maxTokens === 0) return yield delta(text.end(), "length");
  for await (const token of model.engine.generate(prompt.tokens, sampling, signal)) {
    generated++;
    if (token.finish === "stop") return yield delta(text.end(), "stop");
    record.add(token);
    const released = text.push(token.token);
    if (released.stopped) return yield delta(released, "stop");
    if (token.finish === "length") {
      const rest = text.end();
      const both = { text: released.text + rest.text, pieces: [...released.pieces, ...rest.pieces] };
      return yield delta(both, rest.stopped ? "stop" : "length");
    }
    if (released.text !== "" || released.pieces.length > 0) yield delta(released, null);
  }
  if (!signal.aborted) throw new Error("The engine ended a generation without saying why");
}

/** Keeps the log-probabilities of tokens whose text is still held back. */
function createRecord(tokenizer: Tokenizer, top: number | undefined) {
  const waiting: (TokenLogprob | null)[] = [];
  const clamp = (logprob: number) => Math.max(logprob, leastLogprob);
  return {
    add(logprob: TokenLogprob | null): void {
      if (top !== undefined) waiting.push(logprob);
    },
    take(pieces: readonly Piece[]): Logprobs | null {
      if (top === undefined) return null;
      const known = waiting.splice(0, pieces.length);
      return {
        tokens: pieces.map(({ id }) => tokenText(tokenizer, id)),
        token_logprobs: known.map((entry) => entry && clamp(entry.logprob)),
        top_logprobs: known.map((entry) => {
          if (!entry) return null;
          const best = [...entry.top.slice(0, top), entry];
          return Object.fromEntries(best.map((one) => [tokenText(tokenizer, one.token), clamp(one.logprob)]));
        }),
        text_offset: pieces.map(({ offset }) => offset),
      };
    },
  };
}

/** Runs generators side by side; yields what comes, first come first. When left or failing, all are ended. */
async function* merge<T>(generators: readonly AsyncGenerator<T>[]): AsyncGenerator<T> {
  const pull = async (from: AsyncGenerator<T>) => ({ from, result: await from.next() });
  const running = new Map(generators.map((generator) => [generator, pull(generator)]));
  try {
    while (running.size > 0) {
      const { from, result } = await Promise.race(running.values());
      if (result.done) {
        running.delete(from);
      } else {
        running.set(from, pull(from));
        yield result.value;
      }
    }
  } finally {
    for (const [generator, next] of running) {
      next.catch(() => {});
      generator.return(undefined).catch(() => {});
    }
  }
}

/** What the tokens of a job and its answer come to. */
export function usageOf(job: Job, generated: number): Usage {
  return { prompt_tokens: job.promptTokens, completion_tokens: generated, total_tokens: job.promptTokens + generated };
}

/** Joins the pieces of an answer: the choices in order, and how many tokens were generated. */
export async function collect(deltas: AsyncIterable<Delta>): Promise<{ choices: Choice[]; generated: number }> {
  const parts: Choice[][] = [];
  let generated = 0;
  for await (const { generated: more, ...part } of deltas) {
    generated += more;
    (parts[part.index] ??= []).push(part);
  }
  return { choices: parts.map(join), generated };
}

function join(parts: readonly Choice[]): Choice {
  const logprobs = parts.flatMap((part) => part.logprobs ?? []);
  return {
    ...parts[parts.length - 1],
    text: parts.map((part) => part.text).join(""),
    logprobs: logprobs.length === 0 ? null : {
      tokens: logprobs.flatMap((part) => part.tokens),
      token_logprobs: logprobs.flatMap((part) => part.token_logprobs),
      top_logprobs: logprobs.flatMap((part) => part.top_logprobs),
      text_offset: logprobs.flatMap((part) => part.text_offset),
    },
  };
}
