/**
 * What differs between training, evaluation, prefill and decoding, so that a model is written once: where tokens come
 * from, how rows attend, and whether anything is dropped. It knows no architecture.
 */
import { attention } from "../kernels/attention.ts";
import type { DroppedBranch } from "../kernels/norm.ts";
import { pagedAttention, writeKeyValue } from "../kernels/paged_attention.ts";
import { dropout } from "../kernels/pointwise.ts";
import type { Graph, Tensor } from "../kernels/gpu/graph.ts";
import { type Heads, headsOf } from "../kernels/heads.ts";
import type { Matrix, Scope } from "./scope.ts";

export interface AttendOptions {
  /** Multiplies the scores: 1/√D. */
  readonly scale: number;
  /** Rate at which probabilities are dropped in training. */
  readonly dropout?: number;
}

export interface Context {
  readonly tokens: Tensor; // (N) u32
  readonly positions: Tensor; // (N) u32
  /**
   * Causal attention of each row to its own document. q (N, H, D); k, v (N, KVH, D), tensors or heads within wider rows
   * → (N, H, D).
   */
  attend(
    layer: number,
    q: Tensor | Heads,
    k: Tensor | Heads,
    v: Tensor | Heads,
    options: AttendOptions,
  ): Tensor;
  /** x itself, but in training, where elements are dropped at `rate` and the others scaled by 1/(1 - rate). */
  dropout(x: Tensor, rate: number): Tensor;
  /** The same for kernels that drop as they read; undefined where nothing is dropped. */
  dropping(rate: number): DroppedBranch | undefined;
  /** Runs a block of layers; its values may be recomputed in the backward pass instead of being kept. */
  block<T>(body: () => T): T;
  /** Runs what costs little beside the products around it; its values may be recomputed in the backward pass. */
  cheap<T>(body: () => T): T;
  /** Whether `cheap` recomputes: what it holds is then best apart from what must be kept. */
  readonly recomputesCheap: boolean;
}

/** A model as a function of its parameters and a context. */
export interface Architecture {
  readonly config: Readonly<Record<string, unknown>>;
  hidden(p: Scope, context: Context): Tensor; // (N, C)
  unembed(p: Scope): Matrix; // (V, C)
}

export const recomputations = ["none", "attention", "block"] as const;
export type Recompute = typeof recomputations[number];

export interface DenseOptions {
  /** Drop as the architecture asks: training only. The graph then has the input `counter`. */
  readonly dropout?: boolean;
  /** What isn't kept for the backward pass: nothing, all but the results of products, or all but one value a block. */
  readonly recompute?: Recompute;
  /** Rows no document passes; estimates of time and the choice of kernels rest on it. Default: all rows. */
  readonly longest?: number;
}

/**
 * Whole documents in one batch of rows, for training and evaluation. Graph inputs: `tokens`, `positions` and `starts`
 * (N) u32, the row where each row's document starts; with dropout `counter` (4) u32: seed, update, the first row's index
 * within the whole update, 0. Masks depend on these numbers alone, not on microbatch or rank.
 */
export function denseContext(graph: Graph, rows: number, options: DenseOptions = {}): Context {
  const starts = graph.input("starts", [rows], "u32");
  let site = 0;
  const counter = options.dropout ? graph.input("counter", [4], "u32") : null;
  const dropping = (rate: number) => counter === null || rate === 0 ? undefined : { rate, site: site++, counter };
  return {
    tokens: graph.input("tokens", [rows], "u32"),
    positions: graph.input("positions", [rows], "u32"),
    attend(_layer, q, k, v, { scale, dropout: rate = 0 }) {
      return attention(q, k, v, starts, { scale, dropout: dropping(rate), longest: options.longest });
    },
    dropout(x, rate) {
      const dropped = dropping(rate);
      return dropped === undefined ? x : dropout(x, rate, dropped.site, dropped.counter);
    },
    dropping,
    block: (body) => options.recompute === "block" ? graph.region(body) : body(),
    cheap: (body) => options.recompute === "attention" ? graph.region(body) : body(),
    recomputesCheap: options.recompute === "attention",
  };
}

export interface PagedOptions {
  /** Rows of one step: prefill chunks and decodes together. */
  readonly rows: number;
  /** Sequences a step may hold. */
  readonly sequences: number;
  /** Blocks of the cache, and the positions of each. */
  readonly blocks: number;
  readonly blockSize: number;
  /** Blocks a sequence may have. */
  readonly blocksPerSequence: number;
  /** In place of the inputs of these names: what the graph itself hands on from step to step. */
  readonly fed?: { readonly tokens: Tensor; readonly positions: Tensor; readonly slots: Tensor };
}

/** Variables of the cache: the keys and the values of one layer, (blocks · block size, KVH, D). */
export function cacheNames(layer: number): { readonly keys: string; readonly values: string } {
  return { keys: `keys.${layer}`, values: `values.${layer}` };
}

/**
 * Rows of many sequences with keys and values in blocks of a cache, for serving. Graph inputs: `tokens` and `positions`
 * (N) u32; `slots` (N) u32, where each row's key and value go (0xffffffff: nowhere); `sequences` (N) u32, the row of
 * `block_table` (S, B) u32 that lists its sequence's blocks.
 */
export function pagedContext(graph: Graph, options: PagedOptions): Context {
  const { rows, blocks, blockSize } = options;
  const { tokens, positions, slots } = options.fed ?? {
    tokens: graph.input("tokens", [rows], "u32"),
    positions: graph.input("positions", [rows], "u32"),
    slots: graph.input("slots", [rows], "u32"),
  };
  const sequences = graph.input("sequences", [rows], "u32");
  const table = graph.input("block_table", [options.sequences, options.blocksPerSequence], "u32");
  return {
    tokens,
    positions,
    attend(layer, q, k, v, { scale }) {
      const { heads, width } = headsOf(k);
      const names = cacheNames(layer);
      const cache = (name: string) => graph.variable(name, [blocks * blockSize, heads, width]);
      const keys = writeKeyValue(cache(names.keys), k, slots);
      const values = writeKeyValue(cache(names.values), v, slots);
      return pagedAttention(q, keys, values, table, sequences, positions, { scale, blockSize });
    },
    dropout: (x) => x,
    dropping: () => undefined,
    block: (body) => body(),
    cheap: (body) => body(),
    recomputesCheap: false,
  };
}
