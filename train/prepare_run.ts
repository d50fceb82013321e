/** The work of one prepare: pieces to Workers, documents to a sink, checkpoints between. It knows no formats and no splits. */
import { join } from "node:path";
import { duration, megabytes, type Progress, progress, silent } from "../model/progress.ts";
import { type Skipped, TOKENIZER_FOLDER } from "./manifest.ts";
import type { Sink, SplitEntries } from "./prepare_output.ts";
import { CheckpointPace } from "./prepare_pace.ts";
import type { Piece } from "./prepare_pieces.ts";
import { Pool } from "./prepare_pool.ts";
import type { Source } from "./prepare_sources.ts";
import { type OutputFolder, REASONS, type SourceState, type State } from "./prepare_state.ts";
import type { Job, TokenizedPiece } from "./prepare_worker.ts";
import type { ShardFormat, Tokens } from "./shards.ts";

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

/** What came of it. */
export interface Finished {
  readonly sources: readonly SourceState[];
  readonly splits: SplitEntries;
  /** Files that were left out whole aren't counted here. */
  readonly skipped: Skipped;
}

export class Run implements Disposable {
  readonly #hashes: (string | undefined)[];
  readonly #progress: Progress;
  readonly #pace: CheckpointPace;
  readonly #started = performance.now();
  readonly #from: number;
  #pieces: number;
  #done: number;
  #skipped: Skipped;

  /** The sink must stand where the state does. */
  constructor(
    readonly options: RunOptions,
    readonly plan: Plan,
    readonly state: State,
    readonly folder: OutputFolder,
    readonly sink: Sink,
  ) {
    this.#hashes = state.sources.map((source) => source.sha256);
    this.#pieces = state.pieces;
    this.#skipped = state.skipped;
    this.#pace = new CheckpointPace(options.checkpointSeconds, () => this.#checkpoint());
    this.#from = this.#done = sumOfBytes(plan.pieces.slice(0, state.pieces));
    const total = sumOfBytes(plan.pieces);
    this.#progress = options.quiet ? silent : progress({ label: "prepare", total, unit: "bytes", from: this.#from });
  }

  /** Does what is left and writes what `conclude` makes of it. @param describe lines that say what came of it. */
  async finish<T extends object>(
    conclude: (done: Finished) => T,
    describe: (result: T) => readonly string[],
  ): Promise<T> {
    if (this.#pieces > 0) {
      this.#progress.line(`going on at ${megabytes(this.#done)} with ${count(this.sink.documents)} documents`);
    }
    for (const reason of this.plan.badFiles) this.#progress.line(`skipped ${reason}`);
    try {
      await this.#work();
      const result = conclude({ sources: this.#sources(), splits: this.sink.finish(), skipped: this.#skipped });
      await this.folder.finish(result);
      for (const line of describe(result)) this.#progress.line(line);
      this.#sayRate();
      return result;
    } finally {
      this.#progress.finish();
    }
  }

  [Symbol.dispose](): void {
    this.sink[Symbol.dispose]();
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
        await this.#pace.maybe();
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
    let at = 0;
    lengths.forEach((length, index) => {
      this.sink.add(tokens.subarray(at, at += length) as Tokens, textBytes[index]);
    });
    const piece = this.plan.pieces[this.#pieces++];
    if (sha256 !== undefined) this.#hashes[piece.source] = sha256;
    if (bad.length > 0) this.#skip(bad, badPiece ? "rowGroups" : "documents");
    this.#done += piece.bytes;
    this.#progress.update(this.#done, `${count(this.sink.documents)} documents`);
  }

  #skip(reasons: readonly string[], what: "rowGroups" | "documents"): void {
    for (const reason of reasons.slice(0, REASONS)) this.#progress.line(`skipped ${reason}`);
    this.#skipped = {
      ...this.#skipped,
      [what]: this.#skipped[what] + reasons.length,
      reasons: [...this.#skipped.reasons, ...reasons].slice(0, REASONS),
    };
  }

  async #checkpoint(): Promise<void> {
    await this.folder.writeState({
      ...this.state,
      sources: this.#sources(),
      pieces: this.#pieces,
      splits: this.sink.checkpoint(),
      skipped: this.#skipped,
    });
  }

  #sources(): SourceState[] {
    return this.state.sources.map((source, index) => ({ ...source, sha256: this.#hashes[index] }));
  }

  #sayRate(): void {
    const seconds = (performance.now() - this.#started) / 1000;
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
