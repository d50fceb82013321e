/**
 * The engine: requests of any number share steps of one model, over a paged key/value cache, with tokens chosen on the
 * GPU. Where one runs alone, several steps follow each other there and one wait reads their tokens. It knows no text and
 * no HTTP.
 */
import { UserError } from "../model/errors.ts";
import {
  checkPrompt,
  defaultSampling,
  type Engine,
  type EngineStats,
  type Generated,
  type Sampling,
  type TokenLogprob,
} from "../model/generate.ts";
import type { Model } from "../model/model.ts";
import { Blocks } from "./blocks.ts";
import { Generation, type Request, Scoring } from "./requests.ts";
import { blockBytes, Runner } from "./runner.ts";
import { type Chunk, Scheduler, type SchedulerLimits } from "./scheduler.ts";
import { createTurns } from "./turns.ts";

/** Positions in a block of the cache. */
const BLOCK = 16;

/** Memory for keys and values where none is named, if a context fits in it. */
const KV_MEMORY = 512 * 2 ** 20;

/** How many tokens are decoded before they are read, where one sequence runs alone. None of it changes which ones. */
export interface Readback {
  /** At most so many; the first ones are read 1, 2, 4 at a time. */
  readonly tokens: number;
  /** No more than before, where those took longer: a stream that comes in lumps reads badly. */
  readonly milliseconds: number;
}

export interface EngineOptions {
  /** Default: up to 8 tokens within 25 ms. */
  readonly readback?: Readback;
  /** Sequences that run at once. Default: 64, or as many as a step has rows. */
  readonly maxSequences?: number;
  /** Rows of one step: what a step may take at most, and so how long a prompt can hold up others. Default: 128 on CPU drivers, else 512. */
  readonly maxBatchedTokens?: number;
  /** Bytes for keys and values. Default: a whole context for each sequence, but no more than 512 MiB or one context. */
  readonly kvMemory?: number;
  /**
   * Gives a request the same bits in any company and after preemption: every step takes the time of a full one. Default:
   * no; then answers agree within rounding, and steps with few rows are shorter.
   */
  readonly batchInvariant?: boolean;
}

/**
 * Makes an engine over a model's own weights; one at a time for a model. Its cache stands until the model is disposed.
 *
 * @throws RangeError where the model has an engine already, for less than one token a readback, and for less than a row
 * a sequence; UserError for less memory than a context takes.
 */
export function createEngine(model: Model, options: EngineOptions = {}): CachedEngine {
  return new CachedEngine(model, options);
}

/** The engine; made by `createEngine`. */
export class CachedEngine implements Engine {
  readonly capacity: number;
  readonly #readback: Readback;
  readonly #scheduler: Scheduler<Request>;
  readonly #runner: Runner;
  readonly #invariant: boolean;
  /** Lets messages in: the GPU is waited for without giving the event loop a turn. */
  readonly #nextTurn = createTurns();
  #working: Promise<void> | undefined;
  #closed = false;
  #rows = 0;
  readonly #stepSizes: number[];

  constructor(readonly model: Model, options: EngineOptions) {
    this.#readback = options.readback ?? { tokens: 8, milliseconds: 25 };
    const { tokens } = this.#readback;
    if (!(Number.isInteger(tokens) && tokens >= 1)) {
      throw new RangeError(`Cannot read ${tokens} tokens at a time: want a whole number from 1 on`);
    }
    this.#invariant = options.batchInvariant ?? false;
    const limits = limitsOf(model, options);
    const blocks = new Blocks(blockCount(model, limits.maxSequences, options.kvMemory), BLOCK);
    this.#scheduler = new Scheduler(blocks, limits);
    this.#stepSizes = new Array(Math.ceil(Math.log2(limits.maxBatchedTokens)) + 1).fill(0);
    this.capacity = limits.maxSequences;
    this.#runner = new Runner(model, blocks, { ...limits, lookahead: tokens, invariant: this.#invariant });
  }

  get contextLength(): number {
    return this.model.config.n_positions;
  }

  get vocabSize(): number {
    return this.model.config.vocab_size;
  }

  get stats(): EngineStats {
    const { running, waiting, blocks, reused, preemptions } = this.#scheduler;
    return {
      running: running.length,
      waiting: waiting.length,
      blocks: blocks.count,
      freeBlocks: blocks.free,
      steps: this.#stepSizes.reduce((sum, count) => sum + count, 0),
      rows: this.#rows,
      stepSizes: [...this.#stepSizes],
      reusedTokens: reused,
      preemptions,
    };
  }

  /** Readies what usual requests need, so that the first ones are as fast as others. Called before any request. */
  async warm(): Promise<void> {
    await this.#runner.warm();
  }

  async *generate(prompt: Uint32Array, sampling: Sampling, signal?: AbortSignal): AsyncGenerator<Generated> {
    checkPrompt(this, prompt);
    if (signal?.aborted || sampling.maxTokens < 1) return;
    const request = new Generation(prompt, sampling, this.contextLength);
    const abort = () => {
      this.#scheduler.remove(request);
      request.end(null);
    };
    this.#enter(request);
    signal?.addEventListener("abort", abort);
    try {
      while (true) {
        const next = await request.inbox.next();
        if (signal?.aborted || next === null) return;
        if (next instanceof Error) throw next;
        yield next;
        if (next.finish !== undefined) return;
      }
    } finally {
      signal?.removeEventListener("abort", abort);
      this.#scheduler.remove(request);
    }
  }

  async score(tokens: Uint32Array, top: number): Promise<(TokenLogprob | null)[]> {
    checkPrompt(this, tokens);
    if (tokens.length === 1) return [null];
    const request = new Scoring(tokens, top);
    this.#enter(request);
    return [null, ...await request.answer];
  }

  #enter(request: Request): void {
    if (this.#closed) throw new Error("Cannot take a request: the engine was disposed");
    this.#scheduler.add(request, request.longest);
    this.#working ??= this.#work();
  }

  get #busy(): boolean {
    return this.#scheduler.running.length + this.#scheduler.waiting.length > 0;
  }

  /** Steps until there is nothing to do. What fails, fails for all: they shared the step. */
  async #work(): Promise<void> {
    try {
      while (this.#busy) {
        await this.#nextTurn();
        await this.#step();
      }
    } catch (error) {
      this.#end(error instanceof Error ? error : new Error(String(error)));
    } finally {
      this.#working = undefined;
    }
  }

  async #step(): Promise<void> {
    const start = performance.now();
    const alone = this.#alone();
    const chunks = alone ? [alone] : this.#scheduler.schedule();
    if (chunks.length === 0) return; // those that were left have gone
    const rows = chunks.reduce((sum, { count }) => sum + count, 0);
    this.#rows += rows;
    this.#stepSizes[Math.ceil(Math.log2(rows))]++;
    const taken = alone ? [await this.#runner.alone(alone)] : await this.#runner.step(chunks);
    const milliseconds = performance.now() - start;
    for (const [i, chunk] of chunks.entries()) {
      const { sequence } = chunk;
      if (!this.#scheduler.running.includes(sequence)) continue; // aborted meanwhile
      const over = sequence.kind === "scoring" ? sequence.take(chunk.from, taken[i]) : this.#choose(sequence, taken[i]);
      if (over) this.#scheduler.remove(sequence);
      else if (alone) sequence.advance(this.#scheduler.blocks, chunk.count);
    }
    const [{ sequence }] = chunks;
    if (chunks.length > 1 || sequence.kind !== "generation") return;
    const { tokens, milliseconds: most } = this.#readback;
    if (milliseconds < most) sequence.lookahead = Math.min(2 * sequence.lookahead, tokens);
  }

  /** The next tokens of a generation that runs alone. Penalties rest on the tokens before, which the host counts. */
  #alone(): Chunk<Generation> | undefined {
    const [sequence] = this.#scheduler.running;
    if (this.#invariant || sequence?.kind !== "generation" || sequence.history.wishes.adjust) return undefined;
    const count = Math.min(sequence.lookahead, sequence.most - sequence.made);
    return this.#scheduler.scheduleAlone(count) as Chunk<Generation> | undefined;
  }

  /** Hands on what was chosen, up to where the generation ends. */
  #choose(sequence: Generation, choices: readonly TokenLogprob[]): boolean {
    return choices.some((choice) => sequence.take(choice));
  }

  #end(error: Error): void {
    for (const request of [...this.#scheduler.running, ...this.#scheduler.waiting]) {
      this.#scheduler.remove(request);
      request.end(error);
    }
    this.#scheduler.blocks.forget();
  }

  /** Ends what still runs. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    this.#end(new Error("The engine was disposed"));
    await this.#working;
    await this.#runner[Symbol.asyncDispose]();
  }
}

function limitsOf(model: Model, options: EngineOptions): SchedulerLimits {
  const { cpu } = model.device.capabilities;
  const usual = options.batchInvariant ? (cpu ? 16 : 64) : cpu ? 128 : 512;
  const { maxBatchedTokens, maxSequences = Math.min(64, usual, maxBatchedTokens ?? usual) } = options;
  return { maxSequences, maxBatchedTokens: maxBatchedTokens ?? Math.max(maxSequences, usual) };
}

/** Blocks for the memory given, or for a context of each sequence as far as is usual. One binding holds one variable of them. */
function blockCount(model: Model, sequences: number, kvMemory: number | undefined): number {
  const { all, one } = blockBytes(model, BLOCK);
  const context = Math.ceil(model.config.n_positions / BLOCK);
  const usual = Math.max(context, Math.min(sequences * context, Math.floor(KV_MEMORY / all)));
  const count = kvMemory === undefined ? usual : Math.floor(kvMemory / all);
  if (count < context) {
    const mebibytes = (bytes: number) => (bytes / 2 ** 20).toFixed(1);
    throw new UserError(
      `Give more memory for keys and values: a context of ${model.config.n_positions} tokens takes ` +
        `${mebibytes(context * all)} MiB, found ${mebibytes(kvMemory ?? 0)}`,
      2,
    );
  }
  const { maxStorageBufferBindingSize: bound } = model.device.capabilities.limits;
  return Math.max(context, Math.min(count, Math.floor(bound / one)));
}

const engines = new WeakMap<Model, CachedEngine>();

/**
 * Tokens after a prompt, as they are chosen. Generations of one model share its steps.
 *
 * @param sampling what differs from `defaultSampling`.
 * @throws RangeError for an empty or too long prompt or an id ≥ V.
 * @example
 * ```ts
 * import { generate, loadModel, openDevice } from "../mod.ts";
 *
 * using device = await openDevice();
 * using model = await loadModel(device, "tests/fixtures/gpt2-tiny");
 * const made: number[] = [];
 * for await (const { token } of generate(model, [4, 32, 31], { maxTokens: 5, temperature: 0.8, topP: 0.95 })) {
 *   made.push(token);
 * }
 * if (made.length !== 5) throw new Error("a token is missing");
 * ```
 */
export async function* generate(
  model: Model,
  prompt: readonly number[],
  sampling: Partial<Sampling> = {},
  signal?: AbortSignal,
): AsyncGenerator<Generated> {
  const engine = engines.get(model) ?? createEngine(model);
  engines.set(model, engine);
  yield* engine.generate(Uint32Array.from(prompt), { ...defaultSampling, ...sampling }, signal);
}
