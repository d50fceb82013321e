/** Answers a job, whole or as events, in the form of its route. It knows no form. */
import type { Context } from "hono";
import { RequestError } from "./errors.ts";
import { sendEvents } from "./events.ts";
import type { Job } from "./job.ts";
import type { Usage } from "./protocol.ts";
import { collect, type Delta, generatedIn, run } from "./run.ts";

/** How a route writes text. */
export interface Form<Whole> {
  /** An answer; each choice is one delta. */
  whole(choices: readonly Delta[], usage: Usage): Promise<Whole> | Whole;
  /** The events that a delta makes. */
  events(delta: Delta): Iterable<unknown>;
  /** The event that ends a stream whose client wants to know. */
  usage(usage: Usage): unknown;
}

/** What every answer and event begins with. */
export function headOf<T extends string>(job: Job, prefix: string, object: T) {
  const id = `${prefix}-${crypto.randomUUID().replaceAll("-", "")}`;
  return { id, object, created: Math.floor(Date.now() / 1000), model: job.model.name };
}

/**
 * Runs a job for a request.
 *
 * @param closing aborted when the app ends what runs: then an answer is an error with 503.
 */
export async function answer<Whole>(c: Context, job: Job, form: Form<Whole>, closing: AbortSignal) {
  const signal = AbortSignal.any([c.req.raw.signal, closing]);
  if (job.request.stream) {
    return sendEvents(c, (hungUp) => events(job, form, AbortSignal.any([signal, hungUp]), closing));
  }
  const choices = await collect(job, signal);
  if (closing.aborted) throw theEnd();
  return c.json(await form.whole(choices, usageOf(job, generatedIn(choices))), 200);
}

async function* events<Whole>(
  job: Job,
  form: Form<Whole>,
  signal: AbortSignal,
  closing: AbortSignal,
): AsyncGenerator<unknown> {
  let total = 0;
  for await (const delta of run(job, signal)) {
    total += delta.generated;
    yield* form.events(delta);
  }
  if (closing.aborted) throw theEnd();
  if (job.request.stream_options?.include_usage) yield form.usage(usageOf(job, total));
}

/** What the tokens of a job and its answer come to. */
function usageOf({ promptTokens }: Job, generated: number): Usage {
  return { prompt_tokens: promptTokens, completion_tokens: generated, total_tokens: promptTokens + generated };
}

const theEnd = () => new RequestError(503, "The server is closing", null, "model_unavailable");
