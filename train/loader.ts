/**
 * Batches out of prepared data, as a pure function of their index: shuffled rows for training, rows in order for evaluation.
 * It knows shards and documents, and nothing of models, steps or GPUs.
 */
import { join } from "node:path";
import { UserError } from "../model/errors.ts";
import { readManifest, type Split } from "./manifest.ts";
import { Shard, type Tokens } from "./shards.ts";
import { permutation } from "./shuffle.ts";

/** Packed rows, flattened: N = rowsPerBatch · context. */
export interface Batch {
  readonly tokens: Uint32Array; // (N)
  /** The token after each; -100 where there is none to learn. */
  readonly targets: Int32Array; // (N)
  /** Counted from the start of the document, or of the row where the document began in an earlier one. */
  readonly positions: Uint32Array; // (N)
  /** Index within the batch of the first token that each one attends to. */
  readonly starts: Uint32Array; // (N)
  readonly validTargets: number;
}

export interface LoaderOptions {
  /** A folder made by prepare. */
  readonly data: string;
  readonly split: Split;
  /** Must be what the data was prepared with. */
  readonly context: number;
  readonly rowsPerBatch: number;
  readonly seed?: number;
  /** "separate": attention and positions restart at each document; "joined": plain causal rows. Default: separate. */
  readonly documents?: "separate" | "joined";
  /** Default: shuffled for train, sequential for validation. */
  readonly order?: "shuffled" | "sequential";
}

export interface Loader extends Disposable {
  /** Rows of the split. */
  readonly rows: number;
  /** Batches in which every row of the split comes up; the last may reach into the next epoch. */
  readonly batchesPerEpoch: number;
  /** Bytes of text in the split. */
  readonly textBytes: number;
  /** Tokens in the split, one end-of-text for each document included. */
  readonly splitTokens: number;
  /**
   * The batch with this index.
   *
   * Shuffled, rows form one endless sequence, epoch after epoch, each a seeded permutation of all rows; batch i holds rows
   * i · rowsPerBatch and on. So each epoch has each row once, and where an epoch ends within a batch, the next one's first
   * rows fill it. Sequential, what lies after the last row is ignored: all targets -100.
   */
  batch(index: number): Promise<Batch>;
}

/** Opens prepared data. @throws UserError where it isn't whole or was prepared with another context. */
export async function openLoader(options: LoaderOptions): Promise<Loader> {
  const { data, split, context, rowsPerBatch, seed = 0, documents = "separate" } = options;
  const sequential = (options.order ?? (split === "train" ? "shuffled" : "sequential")) === "sequential";
  const manifest = await readManifest(data);
  if (manifest.context !== context) {
    const wanted = `it was prepared with context ${manifest.context}, wanted ${context}`;
    throw new UserError(`Cannot load ${data}: ${wanted}; run \`deno task prepare\` with --context ${context}`);
  }
  if (!(rowsPerBatch >= 1)) throw new RangeError(`Cannot load ${rowsPerBatch} rows a batch: want at least one`);
  const { rows, textBytes, tokens: splitTokens, shards } = manifest.splits[split];
  if (rows === 0) {
    throw new UserError(`Cannot load ${data}: its ${split} split is empty; prepare more text or another --validation`);
  }
  const files = new ShardSet(data, shards.map((shard) => shard.file), shards.map((shard) => shard.rows), manifest);
  const place = sequential ? (at: number) => at < rows ? at : undefined : shuffledRows(rows, seed);
  return {
    rows,
    textBytes,
    splitTokens,
    batchesPerEpoch: Math.ceil(rows / rowsPerBatch),
    // deno-lint-ignore require-await -- reading is quick and needs no waiting today; callers may rely on a promise
    async batch(index) {
      if (!Number.isSafeInteger(index) || index < 0) throw new RangeError(`Cannot load batch ${index}: no such index`);
      const first = index * rowsPerBatch;
      const builder = new BatchBuilder(rowsPerBatch, context, manifest.endOfText, documents === "separate");
      for (let row = 0; row < rowsPerBatch; row++) {
        const at = place(first + row);
        if (at === undefined) builder.addIgnored();
        else builder.add(files.row(at));
      }
      return builder.batch();
    },
    [Symbol.dispose]: () => files[Symbol.dispose](),
  };
}

/** Where each place in the endless sequence of epochs lies among the rows. The last two epochs' orders are kept. */
function shuffledRows(rows: number, seed: number): (at: number) => number {
  const orders = new Map<number, Uint32Array>();
  return (at) => {
    const epoch = Math.floor(at / rows);
    let order = orders.get(epoch);
    if (!order) {
      if (orders.size === 2) orders.delete(orders.keys().next().value!);
      order = permutation(rows, seed, epoch);
      orders.set(epoch, order);
    }
    return order[at % rows];
  };
}

/** One packed row with what is known of it. */
interface Row {
  readonly tokens: Tokens; // (context + 1)
  /** Tokens before the padding. */
  readonly valid: number;
  /** Where documents start within the row, ascending. */
  readonly starts: readonly number[];
}

/** The shards of a split as one list of rows; files are opened when first needed. */
class ShardSet implements Disposable {
  readonly #shards: (Shard | undefined)[] = [];
  /** Number of the first row of each shard. */
  readonly #firsts: number[] = [];

  constructor(
    readonly folder: string,
    readonly files: readonly string[],
    readonly rows: readonly number[],
    readonly format: { readonly context: number; readonly vocabSize: number; readonly endOfText: number },
  ) {
    let first = 0;
    for (const count of rows) {
      this.#firsts.push(first);
      first += count;
    }
  }

  row(index: number): Row {
    const which = lowerBound(this.#firsts, index + 1) - 1;
    const shard = this.#shards[which] ??= this.#open(which);
    const width = shard.header.context + 1;
    const from = (index - this.#firsts[which]) * width;
    const tokens = shard.rows(index - this.#firsts[which], 1);
    const starts: number[] = [];
    for (let at = lowerBound(shard.starts, from); shard.starts[at] < from + width; at++) {
      starts.push(shard.starts[at] - from);
    }
    return { tokens, valid: Math.min(width, shard.header.tokens - from), starts };
  }

  [Symbol.dispose](): void {
    for (const shard of this.#shards) shard?.[Symbol.dispose]();
    this.#shards.length = 0;
  }

  #open(which: number): Shard {
    const shard = new Shard(join(this.folder, this.files[which]));
    const { rows, context, vocabSize, endOfText } = shard.header;
    const same = rows === this.rows[which] && context === this.format.context &&
      vocabSize === this.format.vocabSize && endOfText === this.format.endOfText;
    if (same) return shard;
    shard[Symbol.dispose]();
    throw new UserError(`Cannot read shard ${shard.path}: it isn't the one in the manifest; prepare the data again`);
  }
}

/** The first index whose value is at least `value`. */
function lowerBound(values: ArrayLike<number>, value: number): number {
  let [low, high] = [0, values.length];
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (values[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

class BatchBuilder {
  readonly #tokens: Uint32Array;
  readonly #targets: Int32Array;
  readonly #positions: Uint32Array;
  readonly #starts: Uint32Array;
  #row = 0;
  #validTargets = 0;

  constructor(rows: number, readonly context: number, readonly endOfText: number, readonly separate: boolean) {
    const size = rows * context;
    this.#tokens = new Uint32Array(size).fill(endOfText);
    this.#targets = new Int32Array(size).fill(-100);
    this.#positions = new Uint32Array(size);
    this.#starts = new Uint32Array(size);
  }

  /** Padding is a document of its own, so that nothing real attends to it. */
  add({ tokens, valid, starts }: Row): void {
    const { context } = this;
    const offset = this.#row++ * context;
    const learned = Math.min(valid - 1, context);
    this.#tokens.set(tokens.subarray(0, Math.min(valid, context)), offset);
    this.#targets.set(tokens.subarray(1, learned + 1), offset);
    this.#validTargets += learned;
    const documents = this.separate ? [0, ...starts, ...(valid < context ? [valid] : [])] : [0];
    documents.forEach((start, which) => {
      const end = Math.min(documents[which + 1] ?? context, context);
      for (let at = start; at < end; at++) {
        this.#positions[offset + at] = at - start;
        this.#starts[offset + at] = offset + start;
      }
    });
  }

  addIgnored(): void {
    this.add({ tokens: new Uint32Array(this.context + 1), valid: 1, starts: [] });
    this.#tokens[(this.#row - 1) * this.context] = this.endOfText;
  }

  batch(): Batch {
    return {
      tokens: this.#tokens,
      targets: this.#targets,
      positions: this.#positions,
      starts: this.#starts,
      validTargets: this.#validTargets,
    };
  }
}
