/** From work for the engine to the pieces of an answer: choices run side by side, tokens become text. Knows no HTTP. */
import type { TokenLogprob } from "../model/generate.ts";
import type { Tokenizer } from "../model/tokenizer.ts";
import type { Job, Prompt, Task } from "./job.ts";
import type { Choice, Logprobs, PromptLogprobs, Usage } from "./protocol.ts";
import { createTextStream, type Piece, type TextStream, tokenText } from "./stream.ts";

/** A piece of the answer: the next text of one choice. */
export interface Delta extends Choice {
  /** Tokens generated since the last piece, hidden ones too. */
  readonly generated: number;
}

/** OpenAI's stand-in for a log-probability of minus infinity, which JSON can't say. */
const leastLogprob = -9999;

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

const clamp = (logprob: number) => Math.max(logprob, leastLogprob);

/** Keeps the log-probabilities of tokens whose text is still held back. */
function createRecord(tokenizer: Tokenizer, top: number | undefined) {
  const waiting: (TokenLogprob | null)[] = [];
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

/** Runs a job to its end: the choices in order, and how many tokens were generated. */
export async function collect(job: Job, signal: AbortSignal): Promise<{ choices: Choice[]; generated: number }> {
  const parts: Choice[][] = [];
  let generated = 0;
  for await (const { generated: more, ...part } of run(job, signal)) {
    generated += more;
    (parts[part.index] ??= []).push(part);
  }
  const choices = parts.map(join);
  const top = job.request.prompt_logprobs;
  if (top === undefined || signal.aborted) return { choices, generated };
  const scored = job.tasks.map(async ({ index, prompt }) => ({
    ...choices[index],
    prompt_logprobs: await promptLogprobs(job.model.tokenizer, prompt, top),
  }));
  return { choices: await Promise.all(scored), generated };
}

async function promptLogprobs(tokenizer: Tokenizer, prompt: Prompt, top: number): Promise<PromptLogprobs> {
  return (await prompt.scores()).map((entry) => {
    if (!entry) return null;
    const best = [...entry.top.slice(0, top), entry];
    return Object.fromEntries(
      best.map((one) => [one.token, { logprob: clamp(one.logprob), decoded_token: tokenText(tokenizer, one.token) }]),
    );
  });
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
