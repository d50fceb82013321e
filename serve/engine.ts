/**
 * The cached engine: one sequence at a time, prefilled by chunks and decoded token by token over a paged key/value cache,
 * with the next token chosen on the GPU and fed on there, so that one wait reads several. It knows no text and no HTTP.
 */
import { embedding } from "../kernels/embedding.ts";
import type { Graph, Tensor } from "../kernels/gpu/graph.ts";
import type { Program } from "../kernels/gpu/program.ts";
import { NO_SLOT } from "../kernels/paged_attention.ts";
import { topLogprobs } from "../kernels/sample.ts";
import { cacheNames, pagedContext, type PagedOptions } from "../model/context.ts";
import {
  checkPrompt,
  defaultSampling,
  type Engine,
  type Generated,
  generated,
  type Sampling,
  type TokenLogprob,
} from "../model/generate.ts";
import { logits } from "../model/linear.ts";
import type { Model } from "../model/model.ts";
import { Programs } from "../model/programs.ts";
import { History, pairs, samplingGraph, TOP_LOGPROBS, type Wishes, wishesOf } from "../model/sampling.ts";
import type { Scope } from "../model/scope.ts";
import { Feed } from "./feed.ts";

/** Positions in a block of the cache. */
const BLOCK = 16;

/** Rows of the compiled steps: a decode, and chunks of a prompt. */
const BUCKETS = [1, 16, 128] as const;

/** How many tokens are decoded before they are read. None of it changes which ones. */
export interface Readback {
  /** At most so many; the first ones are read 1, 2, 4 at a time. */
  readonly tokens: number;
  /** No more than before, where those took longer: a stream that comes in lumps reads badly. */
  readonly milliseconds: number;
}

const READBACK: Readback = { tokens: 8, milliseconds: 25 };

/**
 * Makes an engine over a model's own weights; one at a time for a model. The cache takes 2 · layers · context · width · 4
 * bytes until the model is disposed.
 *
 * @throws RangeError where the model has an engine already, or for less than one token a readback.
 */
export function createEngine(model: Model, readback: Readback = READBACK): CachedEngine {
  if (!(Number.isInteger(readback.tokens) && readback.tokens >= 1)) {
    throw new RangeError(`Cannot read ${readback.tokens} tokens at a time: want a whole number from 1 on`);
  }
  return new CachedEngine(model, readback);
}

/** The cached engine; made by `createEngine`. Generations of one engine take turns. */
export class CachedEngine implements Engine {
  readonly #programs: Programs;
  readonly #blocks: number;
  readonly #feed: Feed;
  #turn: Promise<void> = Promise.resolve();

  constructor(readonly model: Model, readonly readback: Readback) {
    const { n_layer, n_head, n_embd, n_positions } = model.config;
    this.#programs = new Programs(model, { keep: true });
    this.#blocks = Math.ceil(n_positions / BLOCK);
    const shape = [this.#blocks * BLOCK, n_head, n_embd / n_head];
    const names = Array.from({ length: n_layer }, (_, layer) => cacheNames(layer)).flatMap((names) =>
      Object.values(names)
    );
    model.store.allocate("cache", names.map((name) => ({ name, shape, dtype: "f32" })));
    this.#feed = new Feed(model.store, readback.tokens, this.vocabSize);
  }

  get contextLength(): number {
    return this.model.config.n_positions;
  }

  get vocabSize(): number {
    return this.model.config.vocab_size;
  }

  async *generate(prompt: Uint32Array, sampling: Sampling, signal?: AbortSignal): AsyncGenerator<Generated> {
    checkPrompt(this, prompt);
    const release = await this.#lock();
    try {
      yield* this.#stream(prompt, sampling, signal);
    } finally {
      release();
    }
  }

  async *#stream(prompt: Uint32Array, sampling: Sampling, signal?: AbortSignal): AsyncGenerator<Generated> {
    const wishes = wishesOf(sampling);
    const history = new History(prompt, sampling);
    const { settings } = history.inputs(this.vocabSize, wishes);
    this.#feed.start(prompt[prompt.length - 1], prompt.length - 1, settings);
    const most = Math.min(sampling.maxTokens, this.contextLength - prompt.length + 1);
    let program = most > 0 ? await this.#prefill(prompt, wishes, signal) : null;
    for (let made = 0, batch = 1; program !== null && !signal?.aborted;) {
      const { settings: _, ...inputs } = history.inputs(this.vocabSize, wishes);
      program.write(inputs);
      const start = performance.now();
      const count = Math.min(batch, most - made);
      for (let i = 0; i < count; i++) program.run();
      const choices = await this.#feed.read(program, made, count, sampling.logprobs);
      // Penalties rest on the tokens before: the host counts them.
      if (!wishes.adjust && performance.now() - start < this.readback.milliseconds) batch *= 2;
      batch = Math.min(batch, this.readback.tokens);
      for (const choice of choices) {
        const next = generated(choice, sampling, ++made, { full: made === most });
        yield next;
        if (next.finish !== undefined || signal?.aborted) return;
        history.push(next.token);
      }
      program = await this.#decoder(1, wishes);
      program.write({ ...this.#pages(1), last: new Uint32Array(1) });
    }
  }

  async score(tokens: Uint32Array, top: number): Promise<(TokenLogprob | null)[]> {
    checkPrompt(this, tokens);
    const release = await this.#lock();
    try {
      const results: (TokenLogprob | null)[] = [null];
      const k = Math.min(TOP_LOGPROBS, this.vocabSize);
      for (const chunk of chunks(0, tokens.length)) {
        const program = await this.#scorer(chunk.rows);
        const targets = new Uint32Array(chunk.rows);
        targets.set(tokens.subarray(chunk.from + 1, chunk.to + 1));
        program.run({ ...this.#inputs(tokens.subarray(chunk.from, chunk.to), chunk), targets });
        const [given, ids, logprobs] = await program.read("given", "ids", "logprobs");
        for (let row = 0; row < chunk.to - chunk.from && chunk.from + row + 1 < tokens.length; row++) {
          const best = pairs(
            new Uint32Array(ids, row * k * 4, k),
            new Float32Array(logprobs, row * k * 4, k),
            Math.min(top, k),
          );
          results.push({ token: targets[row], logprob: new Float32Array(given)[row], top: best });
        }
      }
      return results;
    } finally {
      release();
    }
  }

  /** Requests take turns, in the order they came. */
  async #lock(): Promise<() => void> {
    const before = this.#turn;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#turn = promise;
    await before;
    return resolve;
  }

  /** Runs a prompt but for its last chunk; returns that one's program, ready to run, or null where the signal stopped it. */
  async #prefill(prompt: Uint32Array, wishes: Wishes, signal?: AbortSignal): Promise<Program | null> {
    const parts = chunks(0, prompt.length);
    const last = parts.pop()!;
    for (const chunk of parts) {
      if (signal?.aborted) return null;
      (await this.#decoder(chunk.rows, null)).run(this.#inputs(prompt.subarray(chunk.from, chunk.to), chunk));
    }
    const program = await this.#decoder(last.rows, wishes);
    program.write({
      ...(last.rows === 1 ? this.#pages(1) : this.#inputs(prompt.subarray(last.from), last)),
      last: Uint32Array.of(last.to - last.from - 1),
    });
    return program;
  }

  /** A chunk's rows, padded to the bucket. */
  #inputs(tokens: Uint32Array, { from, rows }: Chunk): Record<string, Uint32Array> {
    const padded = new Uint32Array(rows);
    padded.set(tokens);
    const positions = padded.map((_, row) => row < tokens.length ? from + row : 0);
    return {
      tokens: padded,
      positions,
      slots: positions.map((position, row) => row < tokens.length ? position : NO_SLOT),
      ...this.#pages(rows),
    };
  }

  /** The one sequence has all blocks, in order: the slot of a position is the position. */
  #pages(rows: number): Record<string, Uint32Array> {
    const block_table = Uint32Array.from({ length: this.#blocks }, (_, block) => block);
    return { sequences: new Uint32Array(rows), block_table };
  }

  /** A step over `rows` rows; with wishes it ends in a chosen token, and over one row it begins with the one fed on. */
  #decoder(rows: number, wishes: Wishes | null): Promise<Program> {
    return this.#programs.get(`${rows} ${JSON.stringify(wishes)}`, (graph) => {
      const scope = this.model.scope(graph);
      if (wishes === null) {
        this.#hidden(graph, scope, rows);
        return {};
      }
      const { token, position, settings } = this.#feed.tensors(graph);
      const fed = rows === 1 ? { tokens: token, positions: position, slots: position } : undefined;
      const last = embedding(this.#hidden(graph, scope, rows, fed), graph.input("last", [1], "u32"));
      const next = logits(last, this.model.architecture.unembed(scope), scope.formats);
      return this.#feed.end(graph, samplingGraph(graph, next, this.vocabSize, wishes, settings));
    });
  }

  #scorer(rows: number): Promise<Program> {
    return this.#programs.get(`score ${rows}`, (graph) => {
      const scope = this.model.scope(graph);
      const hidden = this.#hidden(graph, scope, rows);
      const all = logits(hidden, this.model.architecture.unembed(scope), scope.formats);
      const k = Math.min(TOP_LOGPROBS, this.vocabSize);
      return { ...topLogprobs(all, graph.input("targets", [rows], "u32"), this.vocabSize, k) };
    });
  }

  #hidden(graph: Graph, scope: Scope, rows: number, fed?: PagedOptions["fed"]): Tensor {
    const context = pagedContext(graph, {
      rows,
      sequences: 1,
      blocks: this.#blocks,
      blockSize: BLOCK,
      blocksPerSequence: this.#blocks,
      fed,
    });
    return this.model.architecture.hidden(scope, context);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#lock();
    await this.#programs[Symbol.asyncDispose]();
  }
}

/** Positions `from` to `to` of a prompt, run in a bucket of `rows`. */
interface Chunk {
  readonly from: number;
  readonly to: number;
  readonly rows: number;
}

/** Cuts `length` positions from `start` into the largest buckets that they fill, and the smallest that holds the rest. */
export function chunks(start: number, length: number): Chunk[] {
  const result: Chunk[] = [];
  for (let from = start; from < start + length;) {
    const left = start + length - from;
    const rows = BUCKETS.findLast((size) => size <= left && size > 1) ?? BUCKETS.find((size) => size >= left)!;
    const to = from + Math.min(rows, left);
    result.push({ from, to, rows });
    from = to;
  }
  return result;
}

const engines = new WeakMap<Model, CachedEngine>();

/**
 * Tokens after a prompt, as they are chosen, with the cached engine. One generation of a model runs at a time.
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
