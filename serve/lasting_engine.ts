/** An engine that outlives what it runs in: one that failed is closed and opened anew. It knows no Worker and no GPU. */
import { setTimeout as delay } from "node:timers/promises";
import type { Engine, EngineStats, Generated, Sampling, TokenLogprob } from "../model/generate.ts";

/** An engine that tells when it has failed for good. */
export interface FragileEngine extends Engine {
  /** Resolves with what failed, once that was not a request's fault. */
  readonly failure: Promise<Error>;
}

export interface LastingOptions {
  /** Opens the engine, the first time too. */
  readonly open: () => Promise<FragileEngine>;
  /** Told what failed and what is done about it. */
  readonly say: (line: string) => void;
  /** Milliseconds before each try to open it again; the last holds for all that follow. Default: at once, then up to a minute. */
  readonly delays?: readonly number[];
  /** Milliseconds without failure after which the tries are counted anew. Default: 10 minutes. */
  readonly calm?: number;
}

const DELAYS = [0, 1_000, 5_000, 15_000, 60_000];

/** Opens an engine that is opened again when it fails. Throws what opening it the first time throws. */
export async function openLasting(options: LastingOptions): Promise<LastingEngine> {
  return new LastingEngine(await options.open(), options);
}

/** The engine, made by `openLasting`. Requests that meet it while it is being opened fail; `healthy` tells when. */
export class LastingEngine implements Engine {
  readonly contextLength: number;
  readonly vocabSize: number;
  readonly capacity: number | undefined;
  readonly #delays: readonly number[];
  readonly #closing = new AbortController();
  #engine: FragileEngine | undefined;
  #tries = 0;
  #opened = performance.now();
  #restarts = 0;
  #restarting: Promise<void> = Promise.resolve();

  constructor(engine: FragileEngine, readonly options: LastingOptions) {
    ({ contextLength: this.contextLength, vocabSize: this.vocabSize, capacity: this.capacity } = engine);
    this.#delays = options.delays ?? DELAYS;
    this.#use(engine);
  }

  get healthy(): boolean {
    return this.#engine !== undefined;
  }

  get stats(): EngineStats | undefined {
    const stats = this.#engine?.stats;
    return stats && { ...stats, restarts: this.#restarts };
  }

  generate(prompt: Uint32Array, sampling: Sampling, signal?: AbortSignal): AsyncIterable<Generated> {
    return this.#current().generate(prompt, sampling, signal);
  }

  score(tokens: Uint32Array, top: number): Promise<readonly (TokenLogprob | null)[]> {
    return this.#current().score(tokens, top);
  }

  #current(): FragileEngine {
    if (this.#engine) return this.#engine;
    throw new Error("The engine is being opened again");
  }

  #use(engine: FragileEngine): void {
    this.#engine = engine;
    this.#opened = performance.now();
    engine.failure.then((error) => {
      if (this.#closing.signal.aborted || this.#engine !== engine) return;
      this.#restarting = this.#restart(engine, error);
    });
  }

  async #restart(failed: FragileEngine, error: Error): Promise<void> {
    this.#engine = undefined;
    const { say, open, calm = 600_000 } = this.options;
    if (performance.now() - this.#opened > calm) this.#tries = 0;
    say(`The engine failed (${error.message}); it is opened again`);
    await Promise.allSettled([failed[Symbol.asyncDispose]()]);
    for (;;) {
      try {
        await delay(this.#delays[Math.min(this.#tries++, this.#delays.length - 1)], undefined, {
          signal: this.#closing.signal,
        });
        const engine = await open();
        if (this.#closing.signal.aborted) return await engine[Symbol.asyncDispose]();
        this.#restarts++;
        say("The engine is open again");
        return this.#use(engine);
      } catch (error) {
        if (this.#closing.signal.aborted) return;
        say(`The engine can't be opened: ${error instanceof Error ? error.message : error}`);
      }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort();
    await this.#restarting;
    await this.#engine?.[Symbol.asyncDispose]();
  }
}
