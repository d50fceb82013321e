/** The work of one prepare: pieces to Workers, documents to splits, checkpoints between. It knows no formats. */
import { join } from "node:path";
import { UserError } from "../model/errors.ts";
import { duration, megabytes, type Progress, progress } from "../model/progress.ts";
import { type Manifest, type Skipped, type Split, SPLITS, TOKENIZER_FOLDER } from "./manifest.ts";
import { sha256 } from "./prepare_bytes.ts";
import { SplitWriter } from "./prepare_output.ts";
import type { Piece } from "./prepare_pieces.ts";
import { Pool } from "./prepare_pool.ts";
import type { Source } from "./prepare_sources.ts";
import type { OutputFolder, State } from "./prepare_state.ts";
import type { Job, TokenizedPiece } from "./prepare_worker.ts";
import type { ShardFormat, Tokens } from "./shards.ts";
import { heldOut } from "./shuffle.ts";

export interface RunOptions {
  readonly format: ShardFormat;
  readonly workers: number;
  readonly skipBad: boolean;
  readonly quiet: boolean;
  readonly checkpointSeconds: number;
  readonly decodeSeconds: number;
}

/** What is to be done. */
export interface Plan {
  readonly sources: readonly Source[];
  readonly pieces: readonly Piece[];
  /** Why sources were left out whole. */
  readonly badFiles: readonly string[];
}

const REASONS = 100;
/** Time that checkpoints may take, as a part of all. */
const CHECKPOINT_SHARE = 0.05;
const silent: Progress = { update() {}, line() {}, finish() {} };

export class Run implements Disposable {
  readonly #splits: Record<Split, SplitWriter>;
  readonly #hashes: (string | undefined)[];
  readonly #progress: Progress;
  readonly #started = performance.now();
  readonly #from: number;
  #pieces: number;
  #done: number;
  #documents: number;
  #skipped: Skipped;
  #nextCheckpoint = 0;

  constructor(readonly options: RunOptions, readonly plan: Plan, readonly state: State, readonly folder: OutputFolder) {
    const open = (split: Split) =>
      new SplitWriter(folder.path, split, options.format, state.settings.shardTokens, state.splits[split]);
    this.#splits = { train: open("train"), validation: open("validation") };
    this.#hashes = state.sources.map((source) => source.sha256);
    this.#pieces = state.pieces;
    this.#skipped = state.skipped;
    this.#documents = SPLITS.reduce((sum, split) => sum + state.splits[split].documents, 0);
    this.#from = this.#done = sumOfBytes(plan.pieces.slice(0, state.pieces));
    const total = sumOfBytes(plan.pieces);
    this.#progress = options.quiet ? silent : progress({ label: "prepare", total, unit: "bytes", from: this.#from });
  }

  /** Does what is left and writes the manifest. */
  async finish(): Promise<Manifest> {
    if (this.#pieces > 0) {
      this.#progress.line(`going on at ${megabytes(this.#done)} with ${count(this.#documents)} documents`);
    }
    for (const reason of this.plan.badFiles) this.#progress.line(`skipped ${reason}`);
    try {
      await this.#work();
      if (this.#documents === 0) throw new UserError("Cannot prepare: the input holds no document");
      const manifest = this.#manifest();
      await this.folder.finish(manifest);
      this.#summarize(manifest);
      return manifest;
    } finally {
      this.#progress.finish();
    }
  }

  [Symbol.dispose](): void {
    for (const split of SPLITS) this.#splits[split][Symbol.dispose]();
  }

  async #work(): Promise<void> {
    const { settings } = this.state;
    const { format, skipBad, workers, decodeSeconds } = this.options;
    const left = this.plan.pieces.length - this.#pieces;
    if (left === 0) return;
    using pool = new Pool(Math.min(workers, left), {
      column: settings.column,
      splitOn: settings.splitOn,
      tokenizer: join(this.folder.path, TOKENIZER_FOLDER),
      vocabSize: format.vocabSize,
      endOfText: format.endOfText,
      skipBad,
    }, decodeSeconds);
    try {
      for await (const piece of pool.run(this.#jobs())) {
        this.#commit(piece);
        await this.#checkpointWhenDue();
      }
    } catch (error) {
      // What came before stands; a disk that refused once may refuse again, and the first refusal is the one to tell.
      await this.#checkpoint().catch(() => {});
      throw error;
    }
  }

  *#jobs(): Generator<Job> {
    const { pieces, sources } = this.plan;
    let hashed = pieces[this.#pieces - 1]?.source ?? -1;
    for (const piece of pieces.slice(this.#pieces)) {
      const source = sources[piece.source];
      yield { piece, source, hash: piece.source > hashed && source.location.kind === "file" };
      hashed = piece.source;
    }
  }

  #commit({ tokens, lengths, textBytes, bad, badPiece, sha256 }: TokenizedPiece): void {
    const { seed, validation } = this.state.settings;
    let at = 0;
    lengths.forEach((length, index) => {
      const split = heldOut(this.#documents++, seed, validation) ? "validation" : "train";
      this.#splits[split].add(tokens.subarray(at, at += length) as Tokens, textBytes[index]);
    });
    const piece = this.plan.pieces[this.#pieces++];
    if (sha256 !== undefined) this.#hashes[piece.source] = sha256;
    if (bad.length > 0) this.#skip(bad, badPiece ? "rowGroups" : "documents");
    this.#done += piece.bytes;
    this.#progress.update(this.#done, `${count(this.#documents)} documents`);
  }

  #skip(reasons: readonly string[], what: "rowGroups" | "documents"): void {
    for (const reason of reasons.slice(0, REASONS)) this.#progress.line(`skipped ${reason}`);
    this.#skipped = {
      ...this.#skipped,
      [what]: this.#skipped[what] + reasons.length,
      reasons: [...this.#skipped.reasons, ...reasons].slice(0, REASONS),
    };
  }

  async #checkpointWhenDue(): Promise<void> {
    const start = performance.now();
    if (start < this.#nextCheckpoint) return;
    await this.#checkpoint();
    const end = performance.now();
    const { checkpointSeconds } = this.options;
    this.#nextCheckpoint = checkpointSeconds === 0
      ? 0
      : end + Math.max(checkpointSeconds * 1000, (end - start) / CHECKPOINT_SHARE);
  }

  async #checkpoint(): Promise<void> {
    await this.folder.writeState({
      ...this.state,
      sources: this.state.sources.map((source, index) => ({ ...source, sha256: this.#hashes[index] })),
      pieces: this.#pieces,
      splits: { train: this.#splits.train.checkpoint(), validation: this.#splits.validation.checkpoint() },
      skipped: this.#skipped,
    });
  }

  #manifest(): Manifest {
    const { context, tokenizer, column, splitOn, validation, seed, shardTokens } = this.state.settings;
    const { vocabSize, endOfText } = this.options.format;
    const { badFiles } = this.plan;
    return {
      format: "wgpt-rows",
      version: 1,
      context,
      vocabSize,
      endOfText,
      tokenizer: { folder: TOKENIZER_FOLDER, hash: tokenizer },
      options: { column, splitOn, validation, seed, shardTokens },
      sources: this.plan.sources.map((source, index) => ({
        path: source.path,
        format: source.format,
        bytes: source.bytes,
        hash: source.location.kind === "file"
          ? `sha256:${this.#hashes[index] ?? sha256(source.location.path)}`
          : source.tag ?? "",
      })),
      splits: { train: this.#splits.train.finish(), validation: this.#splits.validation.finish() },
      skipped: {
        ...this.#skipped,
        files: badFiles.length,
        reasons: [...badFiles, ...this.#skipped.reasons].slice(0, REASONS),
      },
    };
  }

  #summarize({ splits, skipped, context }: Manifest): void {
    const seconds = (performance.now() - this.#started) / 1000;
    const parts = SPLITS.filter((split) => split === "train" || splits[split].documents > 0).map((split) => {
      const { documents, tokens, rows } = splits[split];
      return `${split} ${count(documents)} documents, ${count(tokens)} tokens, ${count(rows)} rows of ${context} + 1`;
    });
    for (const part of parts) this.#progress.line(part);
    const { files, rowGroups, documents } = skipped;
    if (files + rowGroups + documents > 0) {
      this.#progress.line(`skipped as corrupt: ${files} files, ${rowGroups} row groups, ${documents} documents`);
    }
    if (this.state.settings.validation > 0 && splits.validation.documents === 0) {
      this.#progress.line(
        `warning: of ${count(this.#documents)} documents none was held out: raise --validation or split more`,
      );
    }
    const bytes = this.#done - this.#from;
    this.#progress.line(
      `${megabytes(bytes)} in ${duration(seconds)}, ${megabytes(bytes / seconds)}/s: ${this.folder.path}`,
    );
  }
}

function sumOfBytes(pieces: readonly Piece[]): number {
  return pieces.reduce((sum, { bytes }) => sum + bytes, 0);
}

function count(value: number): string {
  return value.toLocaleString("en-US");
}
