/** The Worker's end of an engine: opens it when asked, answers requests, hears aborts meanwhile. Knows no model and no GPU. */
import type { Engine, EngineStats, Sampling } from "../model/generate.ts";
import { type FromWorker, type OpenEngineOptions, toFailure, type ToWorker } from "./wire.ts";
import { createTurns } from "./turns.ts";

/** The Worker's global scope, as far as it is needed here. */
export interface WorkerPort {
  onmessage: ((event: MessageEvent) => void) | null;
  postMessage(message: unknown): void;
  close(): void;
}

/** Opens an engine; what it makes for it, it adds to the resources, which are closed at the end. */
export type OpenEngine = (
  folder: string,
  resources: AsyncDisposableStack,
  options: OpenEngineOptions,
) => Promise<Engine>;

/** Milliseconds between reports of what the engine is doing. */
const REPORT = 200;

/** Serves an engine to the thread that made this Worker. */
export function hostEngine(port: WorkerPort, open: OpenEngine): void {
  const host = new EngineHost(port, open);
  port.onmessage = ({ data }: MessageEvent<ToWorker>) => host.receive(data);
}

class EngineHost {
  readonly #resources = new AsyncDisposableStack();
  readonly #aborts = new Map<number, AbortController>();
  readonly #running = new Set<Promise<void>>();
  /** Lets messages in: an engine that never waits for long would keep an abort from being read. */
  readonly #nextTurn = createTurns();
  #engine!: Engine;
  #reported: EngineStats | undefined;

  constructor(readonly port: WorkerPort, readonly open: OpenEngine) {}

  receive(message: ToWorker): void {
    if (message.type === "close") return void this.#close();
    const handled = this.#handle(message).catch((error) => {
      this.#post({ type: "failed", id: "id" in message ? message.id : undefined, failure: toFailure(error) });
    }).finally(() => this.#running.delete(handled));
    this.#running.add(handled);
  }

  #post(message: FromWorker): void {
    this.port.postMessage(message);
  }

  async #handle(message: Exclude<ToWorker, { type: "close" }>): Promise<void> {
    switch (message.type) {
      case "open": {
        this.#engine = await this.open(message.folder, this.#resources, message.options);
        const { contextLength, vocabSize, capacity } = this.#engine;
        this.#resources.adopt(setInterval(() => this.#report(), REPORT), clearInterval);
        return this.#post({ type: "opened", facts: { contextLength, vocabSize, capacity } });
      }
      case "generate":
        return await this.#generate(message.id, message.prompt, message.sampling);
      case "score": {
        const scores = await this.#engine.score(message.tokens, message.top);
        return this.#post({ type: "scores", id: message.id, scores });
      }
      case "abort":
        return this.#aborts.get(message.id)?.abort();
    }
  }

  /** Tells what the engine is doing, where that has changed. */
  #report(): void {
    const { stats } = this.#engine;
    const before = this.#reported;
    if (
      !stats || (before?.steps === stats.steps && before.running === stats.running && before.waiting === stats.waiting)
    ) {
      return;
    }
    this.#reported = stats;
    this.#post({ type: "stats", stats });
  }

  async #generate(id: number, prompt: Uint32Array, sampling: Sampling): Promise<void> {
    const controller = new AbortController();
    this.#aborts.set(id, controller);
    try {
      for await (const token of this.#engine.generate(prompt, sampling, controller.signal)) {
        if (controller.signal.aborted) break;
        this.#post({ type: "token", id, token });
        await this.#nextTurn();
      }
      this.#post({ type: "end", id });
    } finally {
      this.#aborts.delete(id);
    }
  }

  async #close(): Promise<void> {
    for (const controller of this.#aborts.values()) controller.abort();
    await Promise.allSettled(this.#running);
    await this.#resources.disposeAsync();
    this.#post({ type: "closed" });
    this.port.close();
  }
}
