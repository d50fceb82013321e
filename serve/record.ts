/** What is known of each request under way, from its arrival to the last byte of its answer. It knows no route and no engine. */
import type { Context, MiddlewareHandler } from "hono";

/** How a request ended: by its status, or, once an answer had begun, by what came between. */
export type Outcome = "cancelled" | "failed" | `${number}`;

export class RequestRecord {
  readonly start = performance.now();
  status = 0;
  /** A name for the API key. */
  key: string | undefined;
  model: string | undefined;
  prompts: readonly string[] = [];
  promptTokens = 0;
  completionTokens = 0;
  readonly finishes: string[] = [];
  /** What ended the answer early. */
  failure: unknown;
  /** Whether nobody was there to read the answer. */
  cancelled = false;
  /** Whether the answer goes on after its head is sent. */
  streaming = false;

  /** @param end called once the answer is over. */
  constructor(readonly id: string, readonly method: string, readonly path: string, readonly end: () => void) {}

  get outcome(): Outcome {
    if (this.cancelled) return "cancelled";
    return this.streaming && this.failure !== undefined ? "failed" : `${this.status}`;
  }

  get seconds(): number {
    return (performance.now() - this.start) / 1000;
  }

  begin(model: string, promptTokens: number): void {
    this.model = model;
    this.promptTokens = promptTokens;
  }

  /** Counts tokens generated, and why a text ended. */
  take(tokens: number, finish: string | null): void {
    this.completionTokens += tokens;
    if (finish !== null) this.finishes.push(finish);
  }
}

const records = new WeakMap<Context, RequestRecord>();

/** The record of a request that `keepRecords` has seen. */
export function recordOf(c: Context): RequestRecord {
  return records.get(c)!;
}

/** Requests under way. */
export class UnderWay {
  readonly #records = new Set<RequestRecord>();
  #idle = () => {};

  constructor(readonly onEnd: (record: RequestRecord) => void) {}

  get count(): number {
    return this.#records.size;
  }

  /** Makes a record for each request and ends it with the answer. The request's id goes back in its header. */
  keepRecords(): MiddlewareHandler {
    return async (c, next) => {
      const record = this.#begin(c);
      try {
        await next();
      } finally {
        record.status = c.res.status;
        if (!record.streaming) record.end();
      }
    };
  }

  #begin(c: Context): RequestRecord {
    const record = new RequestRecord(c.get("requestId"), c.req.method, c.req.path, () => {
      if (!this.#records.delete(record)) return;
      this.onEnd(record);
      if (this.#records.size === 0) this.#idle();
    });
    records.set(c, record);
    this.#records.add(record);
    return record;
  }

  /** Resolves when no request is under way. */
  async idle(): Promise<void> {
    if (this.#records.size > 0) await new Promise<void>((resolve) => this.#idle = resolve);
  }
}
