/** An engine that works in a Worker, seen from the thread that asks it. Knows no model and no GPU. */
import type { EngineStats, Generated, Sampling } from "../model/generate.ts";
import { Inbox } from "./inbox.ts";
import type { FragileEngine } from "./lasting_engine.ts";
import {
  type EngineFacts,
  fromFailure,
  type FromWorker,
  type OpenEngineOptions,
  type Scores,
  type ToWorker,
} from "./wire.ts";
import { within } from "./within.ts";

/** How long a Worker may take to close by itself, in milliseconds. */
const closingTime = 3000;

/**
 * Opens a model folder in a Worker whose script calls `hostEngine`, and takes the Worker over: disposing of the engine ends it.
 * Throws what opening the folder throws there.
 */
export async function openRemoteEngine(
  worker: Worker,
  folder: string,
  options: OpenEngineOptions = {},
): Promise<RemoteEngine> {
  const wire = new Wire(worker);
  wire.post({ type: "open", folder, options });
  const answer = await wire.general.next();
  if (!(answer instanceof Error) && answer.type === "opened") {
    return new RemoteEngine(wire, answer.facts);
  }
  worker.terminate();
  throw answer;
}

/** A request's messages; an Error is the last. */
type Answers = Inbox<FromWorker | Error>;

/** Sorts a Worker's messages by request, and tells all of them when it is gone. */
class Wire {
  /** For messages that belong to no request. */
  readonly general: Answers = new Inbox();
  readonly #inboxes = new Map<number, Answers>();
  #nextId = 0;
  #gone: Error | undefined;
  /** What the engine was doing lately. */
  stats: EngineStats | undefined;
  readonly failure = Promise.withResolvers<Error>();
  failed = false;

  constructor(readonly worker: Worker) {
    worker.onmessage = ({ data }: MessageEvent<FromWorker>) => this.#sort(data);
    worker.onmessageerror = () => this.lose(new Error("The engine's worker sent what can't be read"));
    worker.onerror = (event) => {
      event.preventDefault();
      this.lose(new Error(`The engine's worker stopped: ${event.message}`));
    };
  }

  get gone(): boolean {
    return this.#gone !== undefined;
  }

  post(message: ToWorker): void {
    this.worker.postMessage(message);
  }

  /** A place for the answers to a new request. */
  begin(): { id: number; inbox: Answers } {
    const request = { id: this.#nextId++, inbox: new Inbox<FromWorker | Error>() };
    this.#inboxes.set(request.id, request.inbox);
    if (this.#gone) request.inbox.push(this.#gone);
    return request;
  }

  end(id: number): void {
    this.#inboxes.delete(id);
  }

  lose(error: Error): void {
    this.#gone ??= error;
    this.#fail(error);
    for (const inbox of [this.general, ...this.#inboxes.values()]) inbox.push(this.#gone);
  }

  #sort(message: FromWorker): void {
    if (message.type === "failed" && message.failure.name !== "RangeError") this.#fail(fromFailure(message.failure));
    if (message.type === "stats") this.stats = message.stats;
    else if ("id" in message && message.id !== undefined) this.#inboxes.get(message.id)?.push(message);
    else this.general.push(message.type === "failed" ? fromFailure(message.failure) : message);
  }

  #fail(error: Error): void {
    this.failed = true;
    this.failure.resolve(error);
  }
}

/** The engine's near end, made by `openRemoteEngine`; disposing of it ends the Worker. */
export class RemoteEngine implements FragileEngine {
  readonly #wire: Wire;

  readonly contextLength: number;
  readonly vocabSize: number;
  readonly capacity: number | undefined;

  constructor(wire: Wire, { contextLength, vocabSize, capacity }: EngineFacts) {
    this.#wire = wire;
    this.contextLength = contextLength;
    this.vocabSize = vocabSize;
    this.capacity = capacity;
  }

  /** As of a moment ago. */
  get stats(): EngineStats | undefined {
    return this.#wire.stats;
  }

  /** False from the first failure that was not a request's fault. */
  get healthy(): boolean {
    return !this.#wire.failed;
  }

  /** Resolves with the first failure that was not a request's fault, the loss of the Worker among them. */
  get failure(): Promise<Error> {
    return this.#wire.failure.promise;
  }

  /** As the engine there does it; ends at once, without a word, when the signal is aborted. */
  async *generate(prompt: Uint32Array, sampling: Sampling, signal?: AbortSignal): AsyncGenerator<Generated> {
    if (signal?.aborted) return;
    const { id, inbox } = this.#wire.begin();
    const abort = () => inbox.push({ type: "end", id });
    signal?.addEventListener("abort", abort);
    let over = false;
    try {
      this.#wire.post({ type: "generate", id, prompt, sampling });
      for (;;) {
        const message = await this.#read(inbox);
        if (signal?.aborted) return;
        if (message.type !== "token") break;
        yield message.token;
      }
      over = true;
    } finally {
      signal?.removeEventListener("abort", abort);
      this.#wire.end(id);
      if (!over) this.#wire.post({ type: "abort", id });
    }
  }

  async score(tokens: Uint32Array, top: number): Promise<Scores> {
    const { id, inbox } = this.#wire.begin();
    try {
      this.#wire.post({ type: "score", id, tokens, top });
      return (await this.#read(inbox) as Extract<FromWorker, { type: "scores" }>).scores;
    } finally {
      this.#wire.end(id);
    }
  }

  /** Reads the next message of a request; throws what failed. */
  async #read(inbox: Answers): Promise<FromWorker> {
    const message = await inbox.next();
    if (message instanceof Error) throw message;
    if (message.type !== "failed") return message;
    throw fromFailure(message.failure);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const wire = this.#wire;
    if (!wire.gone) {
      wire.post({ type: "close" });
      await within(wire.general.next(), closingTime);
      wire.lose(new Error("The engine is closed"));
    }
    wire.worker.terminate();
  }
}
