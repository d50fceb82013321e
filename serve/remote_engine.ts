/** An engine on the other side of a Worker: both ends of the wire, abort included. Knows no model and no GPU. */
import { setImmediate } from "node:timers";
import { UserError } from "../model/errors.ts";
import type { Engine, Generated, Sampling, TokenLogprob } from "../model/generate.ts";

type Scores = readonly (TokenLogprob | null)[];

interface Failure {
  readonly name: string;
  readonly message: string;
  readonly exitCode?: number;
}

type ToWorker =
  | { readonly type: "open"; readonly folder: string }
  | { readonly type: "generate"; readonly id: number; readonly prompt: Uint32Array; readonly sampling: Sampling }
  | { readonly type: "score"; readonly id: number; readonly tokens: Uint32Array; readonly top: number }
  | { readonly type: "abort"; readonly id: number }
  | { readonly type: "close" };

type FromWorker =
  | { readonly type: "opened"; readonly contextLength: number; readonly vocabSize: number }
  | { readonly type: "token"; readonly id: number; readonly token: Generated }
  | { readonly type: "scores"; readonly id: number; readonly scores: Scores }
  | { readonly type: "end"; readonly id: number }
  | { readonly type: "failed"; readonly id?: number; readonly failure: Failure }
  | { readonly type: "closed" };

function toFailure(error: unknown): Failure {
  if (!(error instanceof Error)) return { name: "Error", message: String(error) };
  return {
    name: error.name,
    message: error.message,
    exitCode: error instanceof UserError ? error.exitCode : undefined,
  };
}

function fromFailure({ name, message, exitCode }: Failure): Error {
  if (exitCode !== undefined) return new UserError(message, exitCode);
  return name === "RangeError" ? new RangeError(message) : new Error(message);
}

/** The Worker's global scope, as far as the engine's end needs it. */
export interface WorkerPort {
  onmessage: ((event: MessageEvent) => void) | null;
  postMessage(message: unknown): void;
  close(): void;
}

/** The Worker's end: opens the engine when asked and answers requests. What `open` makes it adds to the resources, closed at the end. */
export function hostEngine(
  port: WorkerPort,
  open: (folder: string, resources: AsyncDisposableStack) => Promise<Engine>,
): void {
  const resources = new AsyncDisposableStack();
  const aborts = new Map<number, AbortController>();
  const running = new Set<Promise<void>>();
  let engine: Engine;
  const post = (message: FromWorker) => port.postMessage(message);

  async function generate(id: number, prompt: Uint32Array, sampling: Sampling): Promise<void> {
    const controller = new AbortController();
    aborts.set(id, controller);
    try {
      for await (const token of engine.generate(prompt, sampling, controller.signal)) {
        if (controller.signal.aborted) break;
        post({ type: "token", id, token });
        await nextTurn();
      }
      post({ type: "end", id });
    } finally {
      aborts.delete(id);
    }
  }
  async function close(): Promise<void> {
    for (const controller of aborts.values()) controller.abort();
    await Promise.allSettled(running);
    await resources.disposeAsync();
    post({ type: "closed" });
    port.close();
  }
  async function handle(message: ToWorker): Promise<void> {
    switch (message.type) {
      case "open":
        engine = await open(message.folder, resources);
        return post({ type: "opened", contextLength: engine.contextLength, vocabSize: engine.vocabSize });
      case "generate":
        return await generate(message.id, message.prompt, message.sampling);
      case "score":
        return post({ type: "scores", id: message.id, scores: await engine.score(message.tokens, message.top) });
      case "abort":
        return aborts.get(message.id)?.abort();
      case "close":
        return void close();
    }
  }
  port.onmessage = ({ data }: MessageEvent<ToWorker>) => {
    const handled = handle(data).catch((error) => {
      post({ type: "failed", id: "id" in data ? data.id : undefined, failure: toFailure(error) });
    }).finally(() => running.delete(handled));
    running.add(handled);
  };
}

/** Lets messages in: an engine that never waits for long would keep an abort from being read. */
function nextTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(() => resolve()));
}

/** Messages of one request, in order, waiting to be read. */
interface Inbox {
  push(message: FromWorker | Error): void;
  next(): Promise<FromWorker | Error>;
}

function createInbox(): Inbox {
  const messages: (FromWorker | Error)[] = [];
  let wake = () => {};
  return {
    push(message) {
      messages.push(message);
      wake();
    },
    async next() {
      if (messages.length === 0) await new Promise<void>((resolve) => wake = resolve);
      return messages.shift()!;
    },
  };
}

export interface RemoteEngine extends Engine {
  /** False from a failure that was not the request's fault until a request succeeds, and for ever once the Worker is gone. */
  healthy(): boolean;
}

/** How long a Worker may take to close by itself, in milliseconds. */
const closingTime = 3000;

/**
 * Opens a model folder in a Worker whose script calls `hostEngine`, and takes the Worker over: disposing of the engine ends it.
 * Throws what opening the folder throws there. A generation whose signal is aborted ends at once, without a word.
 */
export async function openRemoteEngine(worker: Worker, folder: string): Promise<RemoteEngine> {
  const wire = createWire(worker);
  try {
    const opened = await wire.opened(folder);
    return createRemote(wire, opened.contextLength, opened.vocabSize);
  } catch (error) {
    worker.terminate();
    throw error;
  }
}

type Wire = ReturnType<typeof createWire>;

function createWire(worker: Worker) {
  const inboxes = new Map<number, Inbox>();
  const own = createInbox(); // messages that belong to no request
  let gone: Error | undefined;
  let nextId = 0;
  const lose = (error: Error) => {
    gone ??= error;
    for (const inbox of [own, ...inboxes.values()]) inbox.push(gone);
  };
  worker.onmessage = ({ data }: MessageEvent<FromWorker>) => {
    if ("id" in data && data.id !== undefined) inboxes.get(data.id)?.push(data);
    else own.push(data.type === "failed" ? fromFailure(data.failure) : data);
  };
  worker.onerror = (event) => {
    event.preventDefault();
    lose(new Error(`The engine's worker stopped: ${event.message}`));
  };
  worker.onmessageerror = () => lose(new Error("The engine's worker sent what can't be read"));
  const post = (message: ToWorker) => worker.postMessage(message);
  return {
    lost: () => gone !== undefined,
    post,
    /** A place for the answers to a new request. */
    begin(): { id: number; inbox: Inbox } {
      const request = { id: nextId++, inbox: createInbox() };
      inboxes.set(request.id, request.inbox);
      if (gone) request.inbox.push(gone);
      return request;
    },
    end: (id: number) => inboxes.delete(id),
    async opened(path: string) {
      post({ type: "open", folder: path });
      const message = await own.next();
      if (message instanceof Error) throw message;
      return message as Extract<FromWorker, { type: "opened" }>;
    },
    async close(): Promise<void> {
      if (gone) return worker.terminate();
      post({ type: "close" });
      const late = Promise.withResolvers<void>();
      const timer = setTimeout(late.resolve, closingTime);
      await Promise.race([own.next(), late.promise]);
      clearTimeout(timer);
      lose(new Error("The engine is closed"));
      worker.terminate();
    },
  };
}

function createRemote(wire: Wire, contextLength: number, vocabSize: number): RemoteEngine {
  let failing = false;
  /** Reads an answer's next message; throws what failed. */
  async function read(inbox: Inbox): Promise<FromWorker> {
    const message = await inbox.next();
    if (message instanceof Error) throw message;
    if (message.type !== "failed") return message;
    const error = fromFailure(message.failure);
    failing = !(error instanceof RangeError);
    throw error;
  }
  async function* generate(prompt: Uint32Array, sampling: Sampling, signal?: AbortSignal): AsyncGenerator<Generated> {
    if (signal?.aborted) return;
    const { id, inbox } = wire.begin();
    const abort = () => inbox.push({ type: "end", id });
    signal?.addEventListener("abort", abort);
    let over = false;
    try {
      wire.post({ type: "generate", id, prompt, sampling });
      for (;;) {
        const message = await read(inbox);
        if (signal?.aborted) return;
        if (message.type !== "token") break;
        failing = false;
        yield message.token;
      }
      over = true;
    } finally {
      signal?.removeEventListener("abort", abort);
      wire.end(id);
      if (!over) wire.post({ type: "abort", id });
    }
  }
  async function score(tokens: Uint32Array, top: number): Promise<Scores> {
    const { id, inbox } = wire.begin();
    try {
      wire.post({ type: "score", id, tokens, top });
      return (await read(inbox) as Extract<FromWorker, { type: "scores" }>).scores;
    } finally {
      wire.end(id);
    }
  }
  return {
    contextLength,
    vocabSize,
    generate,
    score,
    healthy: () => !failing && !wire.lost(),
    [Symbol.asyncDispose]: () => wire.close(),
  };
}
