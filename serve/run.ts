/** From work for the engine to pieces of text: choices run side by side, tokens become text. It knows no form of answers and no HTTP. */
import type { TokenLogprob } from "../model/generate.ts";
import type { Job, Task } from "./job.ts";
import { createTextStream, type Released } from "./stream.ts";

/** A token whose text has been let out. */
export interface ShownToken {
  readonly id: number;
  /** Where its first byte falls, in Unicode code points from the start of the choice's text. */
  readonly offset: number;
  /** Null for the first token of an echoed prompt, which has none before it, and where nobody asked. */
  readonly logprob: TokenLogprob | null;
}

/** The next text of one choice, or all of it. */
export interface Delta {
  readonly index: number;
  readonly text: string;
  /** Tokens that begin in the text. */
  readonly tokens: readonly ShownToken[];
  /** Why the choice ends with this; null where it goes on. */
  readonly finish: "stop" | "length" | null;
  /** Tokens generated since the last delta, hidden ones too. */
  readonly generated: number;
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
  const waiting: (TokenLogprob | null)[] = []; // of tokens whose text is held back
  let [generated, made] = [0, 0];
  const delta = ({ text, pieces }: Pick<Released, "text" | "pieces">, finish: Delta["finish"]): Delta => {
    const logprobs = waiting.splice(0, pieces.length);
    const tokens = pieces.map((piece, i) => ({ ...piece, logprob: logprobs[i] }));
    const piece = { index, text, tokens, finish, generated };
    generated = 0;
    return piece;
  };

  if (request.echo && prompt.shown.length > 0) {
    const scores = request.logprobs === undefined ? [] : await prompt.scores();
    const released = Array.from(prompt.shown, (token, i) => (waiting.push(scores[i] ?? null), text.echo(token)));
    yield delta({ text: released.map((r) => r.text).join(""), pieces: released.flatMap((r) => r.pieces) }, null);
  }
  if (sampling.maxTokens === 0) return yield delta(text.end(), "length");
  for await (const token of model.engine.generate(prompt.tokens, sampling, signal)) {
    generated++;
    made++;
    if (token.finish === "stop") return yield delta(text.end(), "stop");
    waiting.push(token);
    const released = made > request.min_tokens ? text.push(token.token) : text.echo(token.token);
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

/** Runs a job to its end: each choice as one piece, in order; where the signal is aborted, those that had begun. */
export async function collect(job: Job, signal: AbortSignal): Promise<Delta[]> {
  const parts: Delta[][] = [];
  for await (const delta of run(job, signal)) (parts[delta.index] ??= []).push(delta);
  return parts.filter((deltas) => deltas.length > 0).map((deltas) => ({ // aborted, a choice may have none
    ...deltas[deltas.length - 1],
    text: deltas.map(({ text }) => text).join(""),
    tokens: deltas.flatMap(({ tokens }) => tokens),
    generated: generatedIn(deltas),
  }));
}

export const generatedIn = (deltas: readonly Delta[]) => deltas.reduce((sum, { generated }) => sum + generated, 0);
