/**
 * A part of the data, prepared beside others: all its documents in order, not divided into splits yet, as only the number of
 * documents before them tells which are held out. It knows no source and no other part.
 */
import { join } from "node:path";
import { UserError } from "../model/errors.ts";
import { AppendFile } from "./append_file.ts";
import { MANIFEST, PART_FOLDER, type Skipped, type SplitEntry } from "./manifest.ts";
import { sha256 } from "./prepare_bytes.ts";
import { emptySplit, type Sink, type SplitEntries, type SplitStates, SplitWriter } from "./prepare_output.ts";
import type { Part } from "./prepare_pieces.ts";
import { PROGRESS, type Settings, type SourceState, type State } from "./prepare_state.ts";
import { Shard, type ShardFormat, tokenArray, type Tokens } from "./shards.ts";

/** What stands in the folder of a part that is done. */
export interface PartManifest {
  readonly format: "wgpt-part";
  readonly version: 1;
  readonly part: Part;
  /** What tells its pieces from those of another plan. */
  readonly plan: string;
  readonly settings: Settings;
  readonly vocabSize: number;
  readonly endOfText: number;
  /** Of the whole; those that this part read have their hash. */
  readonly sources: readonly SourceState[];
  readonly documents: SplitEntry;
  /** SHA-256 of the table of documents. */
  readonly table: string;
  readonly skipped: Skipped;
  readonly badFiles: readonly string[];
}

export function partFolder(out: string, { number, of }: Part): string {
  const [a, b] = [number, of].map((value) => String(value).padStart(5, "0"));
  return join(out, `part-${a}-of-${b}`);
}

/** Parts that stand in a folder. */
export function partsIn(out: string): Part[] {
  const names = [...Deno.readDirSync(out)].map(({ name }) => PART_FOLDER.exec(name));
  return names.filter((match) => match !== null).map(([, number, of]) => ({ number: Number(number), of: Number(of) }));
}

/** @throws UserError where a folder holds anything but parts of as many. */
export function refuseOthers(out: string, { of }: Part): void {
  let names: string[];
  try {
    names = [...Deno.readDirSync(out)].map(({ name }) => name);
  } catch {
    return; // it will be made
  }
  const choose = "choose another folder for --out, or remove this one";
  const refuse = (what: string) => {
    throw new UserError(`Cannot prepare a part into ${out}: ${what}; ${choose}`);
  };
  if (names.includes(MANIFEST)) refuse("its data is whole already");
  if (names.includes(PROGRESS) && mergedBy(out) !== of) refuse("another prepare has begun to write there");
  const others = partsIn(out).find((part) => part.of !== of);
  if (others !== undefined) refuse(`it holds parts of ${others.of}, wanted parts of ${of}`);
}

/** How many parts a merge that has begun in a folder joins. */
function mergedBy(out: string): number | undefined {
  try {
    return (JSON.parse(Deno.readTextFileSync(join(out, PROGRESS))) as State).parts;
  } catch {
    return undefined;
  }
}

/** Tokens and bytes of text of each document, as two u32. */
const TABLE = "documents.bin";
const ENTRY_BYTES = 8;

/** Writes the documents of a part. */
export class PartSink implements Sink {
  readonly #tokens: SplitWriter;
  readonly #table: AppendFile;
  #documents: number;

  constructor(folder: string, format: ShardFormat, shardTokens: number, { train }: SplitStates) {
    this.#documents = train.documents;
    this.#table = new AppendFile(join(folder, TABLE), train.documents * ENTRY_BYTES, 0, new Uint32Array(1 << 13));
    this.#tokens = new SplitWriter(folder, "train", format, shardTokens, train);
  }

  get documents(): number {
    return this.#documents;
  }

  add(document: Tokens, textBytes: number): void {
    this.#tokens.add(document, textBytes);
    this.#table.append(Uint32Array.of(document.length, textBytes));
    this.#documents++;
  }

  checkpoint(): SplitStates {
    this.#table.sync();
    return { train: this.#tokens.checkpoint(), validation: emptySplit };
  }

  finish(): SplitEntries {
    this.#table.sync();
    return {
      train: this.#tokens.finish(),
      validation: { documents: 0, tokens: 0, textBytes: 0, rows: 0, shards: [] },
    };
  }

  [Symbol.dispose](): void {
    this.#tokens[Symbol.dispose]();
    this.#table[Symbol.dispose]();
  }
}

/** SHA-256 of a part's table of documents. */
export function tableHash(folder: string): string {
  return sha256(join(folder, TABLE));
}

export interface PartDocument {
  readonly tokens: Tokens;
  readonly textBytes: number;
}

const TABLE_ENTRIES = 1 << 16;

/** The documents of a part from one of them on. @throws UserError where they aren't what was prepared. */
export function* documentsOfPart(folder: string, manifest: PartManifest, first: number): Generator<PartDocument> {
  const { documents } = manifest.documents;
  if (documents === first) return;
  const path = join(folder, TABLE);
  if (tableHash(folder) !== manifest.table) throw changed(path);
  using table = Deno.openSync(path, { read: true });
  const entries = function* (): Generator<readonly [tokens: number, textBytes: number]> {
    for (let from = 0; from < documents; from += TABLE_ENTRIES) {
      const some = new Uint32Array(2 * Math.min(TABLE_ENTRIES, documents - from));
      readFully(table, new Uint8Array(some.buffer), path);
      for (let index = 0; index < some.length; index += 2) yield [some[index], some[index + 1]];
    }
  };
  using stream = new TokenStream(folder, manifest);
  let index = 0;
  for (const [tokens, textBytes] of entries()) {
    if (index++ < first) stream.skip(tokens);
    else yield { tokens: stream.take(tokens), textBytes };
  }
}

function readFully(file: Deno.FsFile, into: Uint8Array, path: string): void {
  for (let done = 0; done < into.length;) {
    const count = file.readSync(into.subarray(done));
    if (count === null) throw changed(path);
    done += count;
  }
}

function changed(path: string): UserError {
  return new UserError(
    `Cannot merge ${path}: it isn't what was prepared; remove its folder and prepare that part again`,
  );
}

const READ_TOKENS = 1 << 20;

/** The tokens of a part one after another, without padding. */
class TokenStream implements Disposable {
  #next = 0;
  #shard: Shard | undefined;
  #row = 0;
  #some: Tokens;
  #at = 0;
  /** Still to be skipped: whole shards needn't be opened. */
  #skipping = 0;

  constructor(readonly folder: string, readonly manifest: PartManifest) {
    this.#some = tokenArray(manifest.vocabSize, 0);
  }

  skip(tokens: number): void {
    this.#skipping += tokens;
  }

  take(tokens: number): Tokens {
    const taken = tokenArray(this.manifest.vocabSize, tokens);
    for (let done = 0; done < tokens;) {
      this.#fill();
      const part = this.#some.subarray(this.#at, this.#at + tokens - done) as Tokens;
      taken.set(part, done);
      done += part.length;
      this.#at += part.length;
    }
    return taken;
  }

  /** Reads on where nothing is left, past what is skipped. */
  #fill(): void {
    for (;;) {
      const here = Math.min(this.#skipping, this.#some.length - this.#at);
      this.#at += here;
      this.#skipping -= here;
      if (this.#at < this.#some.length) return;
      if (this.#shard === undefined || this.#row === this.#shard.header.rows) this.#open();
      this.#read();
    }
  }

  /** Opens the next shard in which there is something to read. */
  #open(): void {
    const { shards } = this.manifest.documents;
    while (this.#next < shards.length && shards[this.#next].tokens <= this.#skipping) {
      this.#skipping -= shards[this.#next++].tokens;
    }
    if (this.#next === shards.length) throw changed(join(this.folder, TABLE));
    const { file, sha256: wanted } = shards[this.#next++];
    const path = join(this.folder, file);
    if (sha256(path) !== wanted) throw changed(path);
    this.#shard?.[Symbol.dispose]();
    this.#shard = new Shard(path);
    this.#row = 0;
  }

  #read(): void {
    const { rows, context, tokens } = this.#shard!.header;
    const count = Math.min(rows - this.#row, Math.max(1, Math.floor(READ_TOKENS / (context + 1))));
    const left = tokens - this.#row * (context + 1);
    this.#some = this.#shard!.rows(this.#row, count).subarray(0, left) as Tokens;
    this.#at = 0;
    this.#row += count;
  }

  [Symbol.dispose](): void {
    this.#shard?.[Symbol.dispose]();
  }
}
