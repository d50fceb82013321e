/** Answers a job, whole or as events, in the form of its route. It knows no form. */
import type { Context } from "hono";
import { RequestError } from "./errors.ts";
import { sendEvents } from "./events.ts";
import type { Job } from "./job.ts";
import { closingError, type Operation } from "./operation.ts";
import type { Usage } from "./protocol.ts";
import { recordOf, type RequestRecord } from "./record.ts";
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
 * @throws RequestError 429 for a full queue, 408 and 503 where the time is over or the app closes before the answer is whole.
 */
export async function answer<Whole>(c: Context, asked: Job, form: Form<Whole>, operation: Operation) {
  const { model: { name, engine, tokenizer }, tasks, request } = asked;
  const { requestSeconds, pingSeconds, logPrompts } = operation.options;
  const record = recordOf(c);
  record.begin(name, asked.promptTokens);
  if (logPrompts) record.prompts = tasks.map(({ prompt }) => tokenizer.decode(prompt.tokens));
  using resources = new DisposableStack();
  resources.use(operation.admission.enter(name, engine.capacity ?? 1, tasks.length));
  const limit = resources.use(new TimeLimit(requestSeconds, operation.closing));
  const job = operation.metrics.timed(asked);
  const client = c.req.raw.signal;
  if (request.stream) {
    const held = resources.move();
    const make = (hungUp: AbortSignal) =>
      events({ job, form, limit, record, held, client: AbortSignal.any([client, hungUp]) });
    return sendEvents(c, make, { ping: pingSeconds * 1000, record });
  }
  const choices = await collect(job, AbortSignal.any([client, limit.signal]));
  for (const choice of choices) record.take(choice.generated, choice.finish);
  limit.check();
  record.cancelled = client.aborted;
  return c.json(await form.whole(choices, usageOf(job, generatedIn(choices))), 200);
}

interface Streamed<Whole> {
  readonly job: Job;
  readonly form: Form<Whole>;
  readonly limit: TimeLimit;
  readonly record: RequestRecord;
  readonly held: Disposable;
  /** Aborted when the client is gone. */
  readonly client: AbortSignal;
}

async function* events<Whole>({ job, form, limit, record, held, client }: Streamed<Whole>): AsyncGenerator<unknown> {
  using _ = held;
  let total = 0;
  for await (const delta of run(job, AbortSignal.any([client, limit.signal]))) {
    total += delta.generated;
    record.take(delta.generated, delta.finish);
    yield* form.events(delta);
  }
  limit.check();
  record.cancelled = client.aborted;
  if (job.request.stream_options?.include_usage) yield form.usage(usageOf(job, total));
}

/** Ends what takes too long, or what the app's closing ends. */
class TimeLimit implements Disposable {
  readonly signal: AbortSignal;
  readonly #late = new AbortController();
  readonly #timer: ReturnType<typeof setTimeout>;

  constructor(readonly seconds: number, readonly closing: AbortSignal) {
    this.#timer = setTimeout(() => this.#late.abort(), seconds * 1000);
    this.signal = AbortSignal.any([this.#late.signal, closing]);
  }

  /** Throws what the client is told, where the limit has ended its answer. */
  check(): void {
    if (this.closing.aborted) throw closingError();
    if (this.#late.signal.aborted) {
      throw new RequestError(408, `Ask for less: the answer took more than ${this.seconds} s`, null, "request_timeout");
    }
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
  }
}

/** What the tokens of a job and its answer come to. */
function usageOf({ promptTokens }: Job, generated: number): Usage {
  return { prompt_tokens: promptTokens, completion_tokens: generated, total_tokens: promptTokens + generated };
}
