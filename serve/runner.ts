/**
 * Steps on the GPU: a batch of rows of many sequences goes through the model in the smallest compiled bucket that holds
 * it, and the rows that end in a choice through the head and the sampler. It knows no queue and owns no block.
 *
 * A step is two programs: the body leaves the rows that are wanted in a variable, where the head finds them. So bodies
 * come by rows and heads by choices, and not both by both.
 */
import { embedding } from "../kernels/embedding.ts";
import { type Graph, reshape, type Tensor } from "../kernels/gpu/graph.ts";
import type { Program } from "../kernels/gpu/program.ts";
import { Workspace } from "../kernels/gpu/workspace.ts";
import { NO_SLOT, writeKeyValue } from "../kernels/paged_attention.ts";
import { topLogprobs } from "../kernels/sample.ts";
import { cacheNames, pagedContext, type PagedOptions } from "../model/context.ts";
import type { TokenLogprob } from "../model/generate.ts";
import { logits } from "../model/linear.ts";
import type { Model } from "../model/model.ts";
import { Programs } from "../model/programs.ts";
import { pairs, readChoices, samplingGraph, samplingInputs, TOP_LOGPROBS, type Wishes } from "../model/sampling.ts";
import type { Scope } from "../model/scope.ts";
import type { Blocks } from "./blocks.ts";
import { bucketOf, buckets } from "./buckets.ts";
import { copyGraph, copyInputs } from "./copies.ts";
import { Feed } from "./feed.ts";
import type { Generation, Request, Scoring } from "./requests.ts";
import type { Chunk, SchedulerLimits } from "./scheduler.ts";
import type { BlockCopy } from "./sequence.ts";

/** Rows that the head takes at once: (64, 50304) f32 of logits = 13 MB. */
const HEAD_ROWS = 64;

/** Least tokens of a row that a graph can adjust. */
const ENTRIES = 64;

const HIDDEN = "hidden";

export interface RunnerOptions extends SchedulerLimits {
  /** Tokens of one readback at most, where one sequence runs alone. */
  readonly lookahead: number;
  /** Whether all steps have the shape of a full one, so that a row's numbers don't depend on how many there are. */
  readonly invariant: boolean;
}

/** Bytes that a block takes in the cache of all layers, and in the largest of its variables. */
export function blockBytes({ config: { n_layer, n_embd } }: Model, size: number): { all: number; one: number } {
  const one = size * n_embd * 4;
  return { all: 2 * n_layer * one, one };
}

/** Programs and cache of a model; one at a time for a model, whose store keeps the cache. */
export class Runner implements AsyncDisposable {
  readonly #workspace: Workspace;
  readonly #programs: Programs;
  readonly #feed: Feed;
  readonly #blocksPerSequence: number;

  constructor(readonly model: Model, readonly blocks: Blocks, readonly options: RunnerOptions) {
    const { n_layer, n_head, n_embd, n_positions, vocab_size } = model.config;
    this.#workspace = new Workspace(model.device);
    this.#programs = new Programs(model, { keep: true, workspace: this.#workspace });
    this.#blocksPerSequence = blocks.needed(n_positions);
    const shape = [blocks.count * blocks.size, n_head, n_embd / n_head];
    const names = Array.from({ length: n_layer }, (_, layer) => Object.values(cacheNames(layer))).flat();
    model.store.allocate("cache", names.map((name) => ({ name, shape, dtype: "f32" })));
    model.store.allocate("hidden", [{ name: HIDDEN, shape: this.#hiddenShape, dtype: "f32" }]);
    this.#feed = new Feed(model.store, options.lookahead, vocab_size);
  }

  /** Runs every program of usual requests once, on rows that go nowhere: some drivers compile when a kernel first runs. */
  async warm(): Promise<void> {
    const wishes = { adjust: false, top: false };
    for (const rows of this.#buckets(this.options.maxBatchedTokens)) {
      const program = await this.#body(rows);
      program.run(this.#noInputs(rows));
    }
    for (const rows of this.#buckets(this.#headRows)) {
      const program = await this.#head(rows, wishes, 0);
      program.run({ ...samplingInputs([], rows), ids: new Uint32Array(rows) });
      await program.read("tokens");
    }
    await this.#copy([{ from: 0, to: 0, positions: 1 }]);
    if (this.options.invariant) return;
    const program = await this.#alone(wishes);
    this.#feed.start(0, 0, new Uint32Array(4));
    program.write({ sampling: new Float32Array(4), sequences: new Uint32Array(1), block_table: this.#table([], 1) });
    program.run({ slots: Uint32Array.of(NO_SLOT) });
    await program.read("ring");
  }

  /** Runs a step. Returns for each chunk the token chosen after its last one, or the scores of all of its rows, or nothing. */
  async step(chunks: readonly Chunk<Request>[]): Promise<TokenLogprob[][]> {
    const choosing = chunks.filter((chunk): chunk is Chunk<Generation> =>
      chunk.sequence.kind === "generation" && chunk.last
    );
    const scoring = chunks.filter((chunk): chunk is Chunk<Scoring> => chunk.sequence.kind === "scoring");
    await this.#copy(chunks.flatMap(({ copy }) => copy ?? []));
    const rows = chunks.reduce((sum, { count }) => sum + count, 0);
    const program = await this.#body(this.#bucket(rows, this.options.maxBatchedTokens));
    program.run(this.#inputs(chunks, choosing, scoring));
    const chosen = await this.#choose(choosing.map(({ sequence }) => sequence));
    const scores = await this.#score(scoring, choosing.length);
    return chunks.map((chunk) => {
      const choice = choosing.indexOf(chunk as Chunk<Generation>);
      return choice >= 0 ? [chosen[choice]] : scores.get(chunk) ?? [];
    });
  }

  /** Several steps of the one sequence that runs, each from the token that the one before chose. It adjusts nothing. */
  async alone({ sequence, from, count }: Chunk<Generation>): Promise<TokenLogprob[]> {
    const { history, sampling, made } = sequence;
    const program = await this.#alone(history.wishes);
    const { settings: _, ...inputs } = samplingInputs([history], 1);
    this.#feed.start(sequence.tokens[from], from, Uint32Array.from(history.settings));
    program.write({ ...inputs, sequences: new Uint32Array(1), block_table: this.#table([sequence.blocks], 1) });
    for (let i = 0; i < count; i++) program.run({ slots: Uint32Array.of(this.#slot(sequence.blocks, from + i)) });
    return await this.#feed.read(program, made, count, sampling.logprobs);
  }

  /** Rows of the program that takes `count`. */
  #bucket(count: number, most: number): number {
    return this.options.invariant ? most : bucketOf(count, most);
  }

  /** All of them, the largest first. */
  #buckets(most: number): readonly number[] {
    return this.options.invariant ? [most] : buckets(most).toReversed();
  }

  get #hiddenShape(): readonly number[] {
    return [this.options.maxBatchedTokens, 1, this.model.config.n_embd];
  }

  get #headRows(): number {
    return Math.min(HEAD_ROWS, this.options.maxBatchedTokens);
  }

  #slot(blocks: readonly number[], position: number): number {
    const { size } = this.blocks;
    return blocks[Math.floor(position / size)] * size + position % size;
  }

  #table(lists: readonly (readonly number[])[], sequences: number): Uint32Array {
    const table = new Uint32Array(sequences * this.#blocksPerSequence);
    lists.forEach((blocks, row) => table.set(blocks.slice(0, this.#blocksPerSequence), row * this.#blocksPerSequence));
    return table;
  }

  /** Inputs of a body: rows that end in a choice go to `hidden` first, then those that are scored. */
  #inputs(
    chunks: readonly Chunk<Request>[],
    choosing: readonly Chunk<Generation>[],
    scoring: readonly Chunk<Scoring>[],
  ): Record<string, Uint32Array> {
    const count = chunks.reduce((sum, { count }) => sum + count, 0);
    const rows = this.#bucket(count, this.options.maxBatchedTokens);
    const inputs = this.#noInputs(rows);
    const { tokens, positions, sequences, slots, places } = inputs;
    let [row, place] = [0, choosing.length];
    for (const [index, chunk] of chunks.entries()) {
      const { sequence, from, count } = chunk;
      for (let position = from; position < from + count; position++, row++) {
        [tokens[row], positions[row], sequences[row]] = [sequence.tokens[position], position, index];
        slots[row] = this.#slot(sequence.blocks, position);
        if (scoring.includes(chunk as Chunk<Scoring>)) places[row] = place++;
      }
      const choice = choosing.indexOf(chunk as Chunk<Generation>);
      if (choice >= 0) places[row - 1] = choice;
    }
    const block_table = this.#table(chunks.map(({ sequence }) => sequence.blocks), this.options.maxSequences);
    return { ...inputs, block_table };
  }

  /** Inputs of a body whose rows leave nothing behind. */
  #noInputs(rows: number) {
    const [tokens, positions, sequences] = [0, 1, 2].map(() => new Uint32Array(rows));
    const [slots, places] = [0, 1].map(() => new Uint32Array(rows).fill(NO_SLOT));
    return { tokens, positions, sequences, slots, places, block_table: this.#table([], this.options.maxSequences) };
  }

  /** Copies positions from block to block, in all layers. */
  async #copy(copies: readonly BlockCopy[]): Promise<void> {
    for (const inputs of copyInputs(copies, this.blocks.size)) {
      const program = await this.#programs.get("copy", (graph) => copyGraph(graph, this.model.config, this.blocks));
      program.run(inputs);
    }
  }

  async #choose(generations: readonly Generation[]): Promise<TokenLogprob[]> {
    const results: TokenLogprob[] = [];
    for (let from = 0; from < generations.length; from += this.#headRows) {
      const part = generations.slice(from, from + this.#headRows);
      const histories = part.map(({ history }) => history);
      const wishes = {
        adjust: histories.some(({ wishes }) => wishes.adjust),
        top: histories.some(({ wishes }) => wishes.top),
      };
      const rows = this.#bucket(part.length, this.#headRows);
      const most = Math.max(...histories.map((history) => history.adjustments().length));
      const entries = wishes.adjust ? bucketOf(Math.max(ENTRIES, most), this.model.config.vocab_size) : 0;
      const program = await this.#head(rows, wishes, entries);
      program.run({
        ...samplingInputs(histories, rows, entries > 0 ? { entries } : undefined),
        ...ids(from, rows, part),
      });
      results.push(...await readChoices(program, wishes, part.map(({ sampling }) => sampling.logprobs)));
    }
    return results;
  }

  async #score(chunks: readonly Chunk<Scoring>[], first: number): Promise<Map<Chunk<Request>, TokenLogprob[]>> {
    const wanted = chunks.flatMap((chunk) =>
      Array.from({ length: chunk.count }, (_, i) => ({ chunk, target: chunk.sequence.text[chunk.from + i + 1] }))
    );
    const results = new Map<Chunk<Request>, TokenLogprob[]>(chunks.map((chunk) => [chunk, []]));
    const k = Math.min(TOP_LOGPROBS, this.model.config.vocab_size);
    for (let from = 0; from < wanted.length; from += this.#headRows) {
      const part = wanted.slice(from, from + this.#headRows);
      const rows = this.#bucket(part.length, this.#headRows);
      const program = await this.#scorer(rows, k);
      const targets = new Uint32Array(rows);
      targets.set(part.map(({ target }) => target));
      program.run({ targets, ...ids(first + from, rows, part) });
      const [given, best, logprobs] = await program.read("given", "ids", "logprobs");
      part.forEach(({ chunk, target }, row) => {
        const { top } = chunk.sequence;
        const list = pairs(new Uint32Array(best, row * k * 4, k), new Float32Array(logprobs, row * k * 4, k), top);
        results.get(chunk)!.push({ token: target, logprob: new Float32Array(given)[row], top: list });
      });
    }
    return results;
  }

  #body(rows: number): Promise<Program> {
    return this.#programs.get(`body ${rows}`, (graph) => {
      const rowsOut = reshape(this.#hidden(graph, this.model.scope(graph), rows, this.options.maxSequences), [
        rows,
        1,
        this.model.config.n_embd,
      ]);
      writeKeyValue(graph.variable(HIDDEN, this.#hiddenShape), rowsOut, graph.input("places", [rows], "u32"));
      return {};
    });
  }

  #head(rows: number, wishes: Wishes, entries: number): Promise<Program> {
    return this.#programs.get(`head ${rows} ${entries} ${JSON.stringify(wishes)}`, (graph) => {
      return samplingGraph(graph, this.#logits(graph, rows), this.model.config.vocab_size, wishes, { entries });
    });
  }

  #scorer(rows: number, k: number): Promise<Program> {
    return this.#programs.get(`score ${rows}`, (graph) => {
      const targets = graph.input("targets", [rows], "u32");
      return { ...topLogprobs(this.#logits(graph, rows), targets, this.model.config.vocab_size, k) };
    });
  }

  /** Logits of the rows of `hidden` that the input `ids` names. */
  #logits(graph: Graph, rows: number): Tensor {
    const scope = this.model.scope(graph);
    const { maxBatchedTokens } = this.options;
    const hidden = reshape(graph.variable(HIDDEN, this.#hiddenShape), [maxBatchedTokens, this.model.config.n_embd]);
    const taken = embedding(hidden, graph.input("ids", [rows], "u32"));
    return logits(taken, this.model.architecture.unembed(scope), scope.formats);
  }

  /** Body and head of one row that begins with the token fed on and ends in the next. */
  #alone(wishes: Wishes): Promise<Program> {
    return this.#programs.get(`alone ${JSON.stringify(wishes)}`, (graph) => {
      const scope = this.model.scope(graph);
      const { token, position, settings } = this.#feed.tensors(graph);
      const fed = { tokens: token, positions: position, slots: graph.input("slots", [1], "u32") };
      const hidden = this.#hidden(graph, scope, 1, 1, fed);
      const next = logits(hidden, this.model.architecture.unembed(scope), scope.formats);
      return this.#feed.end(graph, samplingGraph(graph, next, this.model.config.vocab_size, wishes, { settings }));
    });
  }

  #hidden(graph: Graph, scope: Scope, rows: number, sequences: number, fed?: PagedOptions["fed"]): Tensor {
    const context = pagedContext(graph, {
      rows,
      sequences,
      blocks: this.blocks.count,
      blockSize: this.blocks.size,
      blocksPerSequence: this.#blocksPerSequence,
      fed,
    });
    return this.model.architecture.hidden(scope, context);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#programs[Symbol.asyncDispose]();
    this.#workspace[Symbol.dispose]();
  }
}

/** Rows `from` on of `hidden`; the padding takes the first again. */
function ids(from: number, rows: number, part: readonly unknown[]): { ids: Uint32Array } {
  return { ids: Uint32Array.from({ length: rows }, (_, row) => row < part.length ? from + row : from) };
}
