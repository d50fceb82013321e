/**
 * The cached engine: one sequence at a time, prefilled by chunks and decoded token by token over a paged key/value cache,
 * with the next token chosen on the GPU. It knows no text and no HTTP.
 */
import { embedding } from "../kernels/embedding.ts";
import type { Graph, Tensor } from "../kernels/gpu/graph.ts";
import type { Program } from "../kernels/gpu/program.ts";
import { NO_SLOT } from "../kernels/paged_attention.ts";
import { topLogprobs } from "../kernels/sample.ts";
import { cacheNames, pagedContext } from "../model/context.ts";
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
import { History, pairs, readChoice, samplingGraph, TOP_LOGPROBS, type Wishes, wishesOf } from "../model/sampling.ts";
import type { Scope } from "../model/scope.ts";

/** Positions in a block of the cache. */
const BLOCK = 16;

/** Rows of the compiled steps: a decode, and chunks of a prompt. */
const BUCKETS = [1, 16, 128] as const;

/**
 * Makes an engine over a model's own weights; one at a time for a model. The cache takes 2 · layers · context · width · 4
 * bytes until the model is disposed.
 *
 * @throws RangeError where the model has an engine already.
 */
export function createEngine(model: Model): CachedEngine {
  return new CachedEngine(model);
}

/** The cached engine; made by `createEngine`. Generations of one engine take turns. */
export class CachedEngine implements Engine {
  readonly #programs: Programs;
  readonly #blocks: number;
  #turn: Promise<void> = Promise.resolve();

  constructor(readonly model: Model) {
    const { n_layer, n_head, n_embd, n_positions } = model.config;
    this.#programs = new Programs(model, { keep: true });
    this.#blocks = Math.ceil(n_positions / BLOCK);
    const shape = [this.#blocks * BLOCK, n_head, n_embd / n_head];
    const names = Array.from({ length: n_layer }, (_, layer) => cacheNames(layer)).flatMap((names) =>
      Object.values(names)
    );
    model.store.allocate("cache", names.map((name) => ({ name, shape, dtype: "f32" })));
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
      const wishes = wishesOf(sampling);
      const history = new History(prompt, sampling);
      let pending = prompt;
      let position = 0;
      for (let made = 1; made <= sampling.maxTokens && !signal?.aborted; made++) {
        const inputs = history.inputs(this.vocabSize, wishes);
        const choice = await this.#advance(pending, position, wishes, inputs, sampling.logprobs, signal);
        if (choice === null) return;
        position += pending.length;
        const next = generated(choice, sampling, made, { full: position >= this.contextLength });
        yield next;
        if (next.finish !== undefined) return;
        pending = Uint32Array.of(next.token);
        history.push(next.token);
      }
    } finally {
      release();
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

  /** Runs new tokens through the model and chooses the one after them; null where the signal stopped it. */
  async #advance(
    tokens: Uint32Array,
    position: number,
    wishes: Wishes,
    sampling: Record<string, ArrayBufferView>,
    alternatives: number,
    signal?: AbortSignal,
  ): Promise<TokenLogprob | null> {
    for (const chunk of chunks(position, tokens.length)) {
      if (signal?.aborted) return null;
      const part = tokens.subarray(chunk.from - position, chunk.to - position);
      const last = chunk.to === position + tokens.length;
      const program = await this.#decoder(chunk.rows, last ? wishes : null);
      const inputs = this.#inputs(part, chunk);
      if (!last) {
        program.run(inputs);
        continue;
      }
      program.run({ ...inputs, last: Uint32Array.of(part.length - 1), ...sampling });
      return await readChoice(program, wishes, alternatives);
    }
    return null;
  }

  /** A chunk's rows, padded to the bucket. The one sequence has all blocks, in order. */
  #inputs(tokens: Uint32Array, { from, rows }: Chunk): Record<string, Uint32Array> {
    const padded = new Uint32Array(rows);
    padded.set(tokens);
    const positions = padded.map((_, row) => row < tokens.length ? from + row : 0);
    return {
      tokens: padded,
      positions,
      slots: positions.map((position, row) => row < tokens.length ? position : NO_SLOT),
      sequences: new Uint32Array(rows),
      block_table: Uint32Array.from({ length: this.#blocks }, (_, block) => block),
    };
  }

  /** A step over `rows` rows; with wishes it ends in a chosen token. */
  #decoder(rows: number, wishes: Wishes | null): Promise<Program> {
    return this.#programs.get(`${rows} ${JSON.stringify(wishes)}`, (graph) => {
      const scope = this.model.scope(graph);
      const hidden = this.#hidden(graph, scope, rows);
      if (wishes === null) return {};
      const last = embedding(hidden, graph.input("last", [1], "u32"));
      const next = logits(last, this.model.architecture.unembed(scope), scope.formats);
      return samplingGraph(graph, next, this.vocabSize, wishes);
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

  #hidden(graph: Graph, scope: Scope, rows: number): Tensor {
    const context = pagedContext(graph, {
      rows,
      sequences: 1,
      blocks: this.#blocks,
      blockSize: BLOCK,
      blocksPerSequence: this.#blocks,
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
