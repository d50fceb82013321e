/**
 * Where documents go: rows of a split, shard after shard, and which split a document belongs to. It knows no source.
 */
import { join } from "node:path";
import { sha256 } from "./prepare_bytes.ts";
import { UserError } from "../model/errors.ts";
import { type ShardEntry, type Split, type SplitEntry, SPLITS } from "./manifest.ts";
import { ShardWriter } from "./shard_writer.ts";
import { shardBytes, type ShardFormat, type Tokens, writing } from "./shards.ts";
import { heldOut } from "./shuffle.ts";

/** How far a split is, so that writing can go on from there. */
export interface SplitState {
  readonly shards: readonly ShardEntry[];
  /** Of the shard that isn't finished. */
  readonly open: { readonly tokens: number; readonly documents: number };
  readonly documents: number;
  readonly tokens: number;
  readonly textBytes: number;
}

export const emptySplit: SplitState = {
  shards: [],
  open: { tokens: 0, documents: 0 },
  documents: 0,
  tokens: 0,
  textBytes: 0,
};

export type SplitStates = Readonly<Record<Split, SplitState>>;
export type SplitEntries = Readonly<Record<Split, SplitEntry>>;

export const emptySplits: SplitStates = { train: emptySplit, validation: emptySplit };

/** Takes documents in their order, and can go back to a checkpoint. */
export interface Sink extends Disposable {
  /** Documents taken, those before it was opened too. */
  readonly documents: number;
  /** The document's first token is end-of-text. */
  add(document: Tokens, textBytes: number): void;
  /** Brings everything to disk and says how far it is. */
  checkpoint(): SplitStates;
  finish(): SplitEntries;
}

/** What decides where a document goes and how long shards get. */
export interface SplitOptions {
  readonly validation: number;
  readonly seed: number;
  readonly shardTokens: number;
}

/** Both splits: a document's number among all decides which one takes it. */
export class SplitSink implements Sink {
  readonly #writers: Readonly<Record<Split, SplitWriter>>;
  #documents: number;

  constructor(folder: string, format: ShardFormat, readonly options: SplitOptions, states: SplitStates) {
    const open = (split: Split) => new SplitWriter(folder, split, format, options.shardTokens, states[split]);
    this.#writers = { train: open("train"), validation: open("validation") };
    this.#documents = documentsIn(states);
  }

  get documents(): number {
    return this.#documents;
  }

  add(document: Tokens, textBytes: number): void {
    const { seed, validation } = this.options;
    const split = heldOut(this.#documents++, seed, validation) ? "validation" : "train";
    this.#writers[split].add(document, textBytes);
  }

  checkpoint(): SplitStates {
    return { train: this.#writers.train.checkpoint(), validation: this.#writers.validation.checkpoint() };
  }

  /** @throws UserError where there was no document. */
  finish(): SplitEntries {
    if (this.#documents === 0) throw new UserError("Cannot prepare: the input holds no document");
    return { train: this.#writers.train.finish(), validation: this.#writers.validation.finish() };
  }

  [Symbol.dispose](): void {
    for (const split of SPLITS) this.#writers[split][Symbol.dispose]();
  }
}

export function documentsIn(splits: Readonly<Record<Split, { readonly documents: number }>>): number {
  return SPLITS.reduce((sum, split) => sum + splits[split].documents, 0);
}

export class SplitWriter implements Disposable {
  readonly #shards: ShardEntry[];
  readonly #shardTokens: number;
  #writer: ShardWriter | undefined;
  #documents: number;
  #tokens: number;
  #textBytes: number;

  /** Goes on from a state; what was written after it is removed. `shardTokens` is rounded down to whole rows. */
  constructor(
    readonly folder: string,
    readonly split: Split,
    readonly format: ShardFormat,
    shardTokens: number,
    state: SplitState,
  ) {
    this.#shardTokens = Math.max(1, Math.floor(shardTokens / (format.context + 1))) * (format.context + 1);
    this.#shards = [...state.shards];
    ({ documents: this.#documents, tokens: this.#tokens, textBytes: this.#textBytes } = state);
    removeLater(folder, split, this.#shards.length + (state.open.tokens > 0 ? 1 : 0));
    if (state.open.tokens > 0) this.#writer = new ShardWriter(this.#path(), format, state.open);
  }

  /** Appends a document; its first token is end-of-text. */
  add(document: Tokens, textBytes: number): void {
    for (let from = 0; from < document.length;) {
      this.#writer ??= new ShardWriter(this.#path(), this.format);
      const part = document.subarray(from, from + this.#shardTokens - this.#writer.tokens) as Tokens;
      this.#writer.append(part, from === 0);
      from += part.length;
      if (this.#writer.tokens === this.#shardTokens) this.#finishShard();
    }
    this.#documents++;
    this.#tokens += document.length;
    this.#textBytes += textBytes;
  }

  /** Brings everything to disk and says how far it is. */
  checkpoint(): SplitState {
    this.#writer?.sync();
    return {
      shards: [...this.#shards],
      open: { tokens: this.#writer?.tokens ?? 0, documents: this.#writer?.documents ?? 0 },
      documents: this.#documents,
      tokens: this.#tokens,
      textBytes: this.#textBytes,
    };
  }

  /** Finishes the last shard. */
  finish(): SplitEntry {
    if (this.#writer) this.#finishShard();
    return {
      documents: this.#documents,
      tokens: this.#tokens,
      textBytes: this.#textBytes,
      rows: this.#shards.reduce((sum, { rows }) => sum + rows, 0),
      shards: this.#shards,
    };
  }

  [Symbol.dispose](): void {
    this.#writer?.[Symbol.dispose]();
  }

  #finishShard(): void {
    const header = this.#writer!.finish();
    const { rows, tokens, documents } = header;
    const path = this.#path();
    this.#shards.push({ file: this.#file(), rows, tokens, documents, bytes: shardBytes(header), sha256: sha256(path) });
    this.#writer = undefined;
  }

  #file(): string {
    return `${this.split}-${String(this.#shards.length).padStart(5, "0")}.bin`;
  }

  #path(): string {
    return join(this.folder, this.#file());
  }
}

/** Whether a file in a folder of data belongs to a split's shards. */
export function isShardFile(name: string): boolean {
  return /^(train|validation)-\d{5,}\.bin(\.partial|\.starts)?$/.test(name);
}

function removeLater(folder: string, split: Split, kept: number): void {
  for (const { name } of Deno.readDirSync(folder)) {
    const number = Number(/-(\d+)/.exec(name)?.[1]);
    if (isShardFile(name) && name.startsWith(split) && number >= kept) {
      const path = join(folder, name);
      writing(path, () => Deno.removeSync(path));
    }
  }
}
