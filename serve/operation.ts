/** How an app is run: its limits, who may ask, what is logged and counted, and how it comes to rest. It knows no route. */
import type { OpenAPIHono } from "@hono/zod-openapi";
import type { MiddlewareHandler } from "hono";
import { bodyLimit } from "hono/body-limit";
import { cors } from "hono/cors";
import { requestId } from "hono/request-id";
import { limitRate, requireKey } from "./access.ts";
import { Admission } from "./admission.ts";
import { RequestError } from "./errors.ts";
import { createLog, type Log } from "./log.ts";
import { Metrics, OTHER } from "./metrics.ts";
import type { Models } from "./models.ts";
import { type RequestRecord, UnderWay } from "./record.ts";
import { within } from "./within.ts";

/** Everything may be left out: then nobody is asked for a key, and only limits that protect the process hold. */
export interface OperationOptions {
  /** Keys of which every request must carry one, but for those about health and the page. Default: none is wanted. */
  readonly apiKeys?: readonly string[];
  /** Origins whose pages may ask; `*` for all. Default: none. */
  readonly corsOrigins?: readonly string[];
  /** POST requests a minute for each key, or each address where there are no keys. Default: no limit. */
  readonly rateLimit?: number;
  /** Texts that may wait for each model besides those that are generated; more get 429. Default: 256. */
  readonly maxQueue?: number;
  /** Larger request bodies get 413. Default: 4 MiB. */
  readonly maxBodyBytes?: number;
  /** Bodies that take longer to arrive get 408. Default: 30. */
  readonly bodySeconds?: number;
  /** Answers that take longer are ended: 408, or an error event. Default: 600. */
  readonly requestSeconds?: number;
  /** Silence in a stream after which a comment says that the connection lives. Default: 15. */
  readonly pingSeconds?: number;
  /** Where requests and failures are written. Default: failures to standard error. */
  readonly log?: Log;
  /** Whether prompts are written too. Default: no. */
  readonly logPrompts?: boolean;
}

const defaults = { maxQueue: 256, maxBodyBytes: 4 * 2 ** 20, bodySeconds: 30, requestSeconds: 600, pingSeconds: 15 };

/** Asked every few seconds by those that watch: not logged where all is well, and answered to the end. */
const WATCHED = new Set(["/health", "/ready", "/metrics"]);

const METHODS = new Set(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]);

/** What all requests of an app share. */
export class Operation {
  readonly options: OperationOptions & typeof defaults;
  readonly admission: Admission;
  readonly metrics: Metrics;
  readonly #log: Log;
  readonly #underWay = new UnderWay((record) => this.#ended(record));
  readonly #closing = new AbortController();
  #paths: ReadonlySet<string> = new Set();
  #draining = false;

  constructor(readonly models: Models, options: OperationOptions) {
    this.options = { ...defaults, ...options };
    this.admission = new Admission(this.options.maxQueue);
    this.metrics = new Metrics(models, () => this.#underWay.count);
    this.#log = options.log ?? createLog({ level: "error", format: "text" });
  }

  /** Whether a request would be answered now. */
  get ready(): boolean {
    return !this.#draining && this.models.ready;
  }

  /** Aborted when what runs is ended. */
  get closing(): AbortSignal {
    return this.#closing.signal;
  }

  /** What stands before every route, in the order that requests meet it. */
  guard(app: OpenAPIHono): void {
    const { apiKeys = [], corsOrigins = [], rateLimit, maxBodyBytes, bodySeconds } = this.options;
    app.use(requestId(), this.#underWay.keepRecords());
    if (corsOrigins.length > 0) app.use(cors({ origin: corsOrigins.includes("*") ? "*" : [...corsOrigins] }));
    app.use(this.#refuseWhileDraining());
    if (apiKeys.length > 0) app.use(requireKey(apiKeys));
    if (rateLimit !== undefined) app.use(limitRate(rateLimit));
    app.use(readBody(maxBodyBytes, bodySeconds));
  }

  /** The paths that are counted apart; called when the app has all of its routes. */
  countPaths(paths: Iterable<string>): void {
    this.#paths = new Set(paths);
  }

  /** Takes no more requests, and waits for those under way, so many seconds at most. */
  async drain(seconds: number): Promise<void> {
    this.#draining = true;
    await within(this.#underWay.idle(), seconds * 1000);
  }

  /** Takes no more requests and ends those under way. */
  close(): void {
    this.#draining = true;
    this.#closing.abort();
  }

  #refuseWhileDraining(): MiddlewareHandler {
    return async (c, next) => {
      if (this.#draining && !WATCHED.has(c.req.path)) throw closingError();
      await next();
    };
  }

  #ended(record: RequestRecord): void {
    const path = this.#paths.has(record.path) ? record.path : OTHER;
    const method = METHODS.has(record.method) ? record.method : OTHER;
    this.metrics.ended(record, { path, method });
    const { failure } = record;
    if (WATCHED.has(record.path) && record.status === 200) return;
    const unexpected = failure !== undefined && !(failure instanceof RequestError);
    this.#log[unexpected ? "error" : "info"]("request", {
      id: record.id,
      method: record.method,
      path: record.path,
      status: record.status,
      outcome: record.outcome === String(record.status) ? undefined : record.outcome,
      ms: Math.round(record.seconds * 1000),
      key: record.key,
      model: record.model,
      prompt_tokens: record.model && record.promptTokens,
      completion_tokens: record.model && record.completionTokens,
      finish: record.finishes.length > 0 ? record.finishes : undefined,
      prompts: record.prompts.length > 0 ? record.prompts : undefined,
      error: failure === undefined ? undefined : describe(failure),
    });
  }
}

function describe(failure: unknown): string {
  if (!(failure instanceof Error)) return String(failure);
  return failure instanceof RequestError ? failure.message : failure.stack ?? failure.message;
}

/** What a request hears that comes, or is still being answered, when the server goes. */
export function closingError(): RequestError {
  const headers = { "Retry-After": "1", Connection: "close" };
  return new RequestError(503, "The server is closing", null, "model_unavailable", headers);
}

function tooLarge(maxBodyBytes: number): never {
  throw new RequestError(413, `Send a body of at most ${maxBodyBytes} bytes`, null, "body_too_large");
}

/** Reads a body as a whole before its route does, so that neither its size nor one that never comes holds anything up. */
function readBody(maxBytes: number, seconds: number): MiddlewareHandler {
  const limited = bodyLimit({ maxSize: maxBytes, onError: () => tooLarge(maxBytes) });
  return async (c, next) => {
    if (c.req.raw.body !== null) await inTime(() => limited(c, async () => void await c.req.arrayBuffer()), seconds);
    await next();
  };
}

async function inTime(read: () => Promise<unknown>, seconds: number): Promise<void> {
  const whole = await within(read(), seconds * 1000).catch((error) => {
    throw error instanceof RequestError ? error : new RequestError(400, "Send the whole body: its end didn't come");
  });
  if (whole) return;
  throw new RequestError(408, `Send the whole body within ${seconds} s`, null, "body_timeout", { Connection: "close" });
}
