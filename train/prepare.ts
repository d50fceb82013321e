/**
 * Prepares data for training: documents out of text, JSON lines and Parquet, tokenized in Workers, packed into rows of
 * context + 1 tokens, written as shards. Interrupted, it goes on where it stopped. It knows no model.
 *
 * A document is its end-of-text token and its text. Documents stand one after another in the order of the sources and are cut
 * into rows that don't overlap, whatever the number of Workers. The last row of a split is padded with end-of-text; padding
 * is never learned.
 */
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { UserError } from "../model/errors.ts";
import { loadTokenizer, type Tokenizer } from "../model/tokenizer.ts";
import { type Manifest, readManifest, TOKENIZER_FOLDER } from "./manifest.ts";
import { describe, manifestOf } from "./prepare_manifest.ts";
import { emptySplits, SplitSink } from "./prepare_output.ts";
import { BadData } from "./prepare_parquet.ts";
import { openSource, type Piece, piecesOf } from "./prepare_pieces.ts";
import { type Plan, Run, type RunOptions } from "./prepare_run.ts";
import {
  ANOTHER,
  checkSettings,
  checkSources,
  hashed,
  nothingSkipped,
  OutputFolder,
  type Settings,
  type SourceState,
  type State,
} from "./prepare_state.ts";
import { findSources, type Source, type SourceOptions } from "./prepare_sources.ts";
import type { ShardFormat } from "./shards.ts";

export type { Manifest } from "./manifest.ts";

export interface PrepareOptions extends SourceOptions {
  /** Files, folders, http(s) URLs, hf:owner/dataset[@revision][/config], or "sotu", the embedded corpus. */
  readonly input: readonly string[];
  /** A tokenizer, or what loadTokenizer takes. It must have an end-of-text token. */
  readonly tokenizer: string | Tokenizer;
  /** Tokens that a row trains on. */
  readonly context: number;
  /** The folder to write; new, empty, or of an interrupted prepare with the same options. */
  readonly out: string;
  /** Column of Parquet files and JSON lines that holds the text. Default: text. */
  readonly column?: string;
  /** Text files: "file" is one document a file, "blank-line" splits at empty lines, anything else at that text. Default: file. */
  readonly splitOn?: string;
  /** Fraction of documents held out. Default: 0.01. */
  readonly validation?: number;
  /** Decides which documents are held out. Default: 0. */
  readonly seed?: number;
  /** Default: one for each processor. */
  readonly workers?: number;
  /** Tokens of a shard, rounded down to whole rows. Default: 67,108,864. */
  readonly shardTokens?: number;
  /** Leaves out what is corrupt and counts it, instead of stopping. */
  readonly skipBad?: boolean;
  /** Prints no progress. */
  readonly quiet?: boolean;
  /** Bytes of text or JSON lines that a Worker takes at a time. Default: 4 MiB. */
  readonly pieceBytes?: number;
  /** Seconds of work that an interruption may cost; 0 keeps every piece. Default: 2. */
  readonly checkpointSeconds?: number;
  /** Seconds after which a part of a Parquet file that is still being decoded counts as corrupt. Default: 60. */
  readonly decodeSeconds?: number;
}

const FOOTERS_AT_ONCE = 8;

/**
 * Prepares a folder of data. What is there already and was made the same way is kept.
 *
 * @returns its manifest.
 * @throws UserError where options are wrong, a source can't be read or is corrupt, or the folder can't be written or holds
 * something else. What was written stays valid, and the same call goes on from it.
 */
export async function prepare(options: PrepareOptions): Promise<Manifest> {
  const { settings, tokenizer, format, plan } = await begin(options);
  using folder = new OutputFolder(options.out);
  if (folder.finished) {
    const finished = await readManifest(options.out);
    checkFinished(options.out, finished, settings, plan.sources);
    folder.clearUp();
    return finished;
  }
  const state = await resume(folder, settings, plan);
  await tokenizer.save(join(options.out, TOKENIZER_FOLDER));
  const sink = new SplitSink(options.out, format, settings, state.splits);
  using run = new Run(runOptions(options, format), plan, state, folder, sink);
  return await run.finish(({ sources, ...done }) => {
    const { badFiles } = plan;
    return manifestOf({ settings, format, sources: hashed(sources, plan.sources), badFiles, ...done });
  }, describe);
}

/** What is to be done, and how. */
export interface Beginning {
  readonly settings: Settings;
  readonly tokenizer: Tokenizer;
  readonly format: ShardFormat;
  readonly plan: Plan;
}

/** Reads options, tokenizer and the list of sources. */
export async function begin(options: PrepareOptions): Promise<Beginning> {
  checkOptions(options);
  const tokenizer = typeof options.tokenizer === "string" ? await loadTokenizer(options.tokenizer) : options.tokenizer;
  const { vocabSize, endOfText } = tokenizer;
  if (endOfText === undefined) {
    throw new UserError("Cannot pack documents: the tokenizer has no end-of-text token; add <|endoftext|> to it");
  }
  const settings = settingsOf(options, tokenizer);
  const format = { context: options.context, vocabSize, endOfText };
  return { settings, tokenizer, format, plan: await planOf(options, settings) };
}

export function runOptions(options: PrepareOptions, format: ShardFormat): RunOptions {
  return {
    format,
    workers: options.workers ?? availableParallelism(),
    skipBad: options.skipBad ?? false,
    quiet: options.quiet ?? false,
    checkpointSeconds: options.checkpointSeconds ?? 2,
    decodeSeconds: options.decodeSeconds ?? 60,
  };
}

function checkOptions(
  { input, context, validation = 0, seed = 0, workers = 1, shardTokens = 1, pieceBytes = 1, splitOn }: PrepareOptions,
): void {
  const wrong = (what: string) => {
    throw new UserError(what, 2);
  };
  if (input.length === 0) wrong("Give what to prepare with --input: files, folders, URLs or hf:owner/dataset");
  const counts = { context, workers, "shard tokens": shardTokens, "piece bytes": pieceBytes };
  for (const [name, value] of Object.entries(counts)) {
    if (!Number.isSafeInteger(value) || value < 1) {
      wrong(`Cannot prepare with ${name} ${value}: wanted a whole number from 1`);
    }
  }
  if (context > 2 ** 24) wrong(`Cannot prepare with context ${context}: at most ${2 ** 24}`);
  if (shardTokens > 2 ** 31) wrong(`Cannot prepare with shard tokens ${shardTokens}: at most ${2 ** 31}`);
  if (!(validation >= 0 && validation <= 1)) wrong(`Cannot hold out ${validation} of the documents: wanted 0 to 1`);
  if (!Number.isInteger(seed) || seed < 0 || seed >= 2 ** 32) {
    wrong(`Cannot use seed ${seed}: wanted 0 to ${2 ** 32 - 1}`);
  }
  if (splitOn === "") wrong("Cannot split on an empty text");
}

function settingsOf(options: PrepareOptions, tokenizer: Tokenizer): Settings {
  const { context, column = "text", splitOn = "file", validation = 0.01, seed = 0 } = options;
  const { shardTokens = 1 << 26, pieceBytes = 4 << 20 } = options;
  return { context, tokenizer: tokenizer.hash, column, splitOn, validation, seed, shardTokens, pieceBytes };
}

async function planOf(options: PrepareOptions, settings: Settings): Promise<Plan> {
  const sources = await findSources(options.input, options);
  const planned: (Piece[] | BadData)[] = [];
  for (let from = 0; from < sources.length; from += FOOTERS_AT_ONCE) {
    const some = sources.slice(from, from + FOOTERS_AT_ONCE);
    planned.push(...await Promise.all(some.map((source, index) => piecesOrFault(source, from + index, settings))));
  }
  const badFiles: string[] = [];
  const pieces = planned.flatMap((each, index) => {
    if (!(each instanceof BadData)) return each;
    const { path } = sources[index];
    if (!options.skipBad) {
      throw new UserError(`Cannot prepare ${path}: ${each.message}; or go on without it with --skip-bad`);
    }
    badFiles.push(`${path}: ${each.message}`);
    return [];
  });
  return { sources, pieces, badFiles };
}

async function piecesOrFault(source: Source, index: number, settings: Settings): Promise<Piece[] | BadData> {
  if (source.format !== "parquet") return piecesOf({ source }, index, settings);
  try {
    const open = await openSource(source, settings);
    open.bytes[Symbol.dispose]();
    return piecesOf(open, index, settings);
  } catch (error) {
    if (error instanceof BadData) return error;
    throw error;
  }
}

function checkFinished(out: string, made: Manifest, settings: Settings, sources: readonly Source[]): void {
  checkSettings(out, { ...made.options, context: made.context, tokenizer: made.tokenizer.hash }, settings);
  if (made.sources.length < sources.length) {
    const more = sources[made.sources.length].path;
    throw new UserError(`Cannot prepare into ${out}: it was made without ${more}; ${ANOTHER}`);
  }
  const states = made.sources.map(({ path, format, bytes, hash }, index) => {
    const local = sources[index]?.location.kind === "file";
    return {
      path,
      format,
      bytes,
      ...(local ? { sha256: hash.slice("sha256:".length) } : { tag: hash || undefined }),
    } as SourceState;
  });
  checkSources(out, states, sources);
}

/**
 * The state to go on from: an interrupted run's, if what it wrote was made the same way.
 *
 * @param part of a part, what tells its pieces from those of another plan: it reads no source but its own.
 */
export async function resume(
  folder: OutputFolder,
  settings: Settings,
  { sources, pieces }: Plan,
  part?: string,
): Promise<State> {
  const state = await folder.state();
  const now = sources.map(({ path, format, bytes, tag, modified }) => ({ path, format, bytes, tag, modified }));
  if (!state) {
    const fresh: State = {
      version: 1,
      settings,
      sources: now,
      pieces: 0,
      splits: emptySplits,
      skipped: nothingSkipped,
      plan: part,
    };
    await folder.writeState(fresh);
    return fresh;
  }
  checkSettings(folder.path, state.settings, settings);
  const first = part === undefined ? 0 : pieces[0]?.source ?? sources.length;
  const read = state.pieces === 0 ? 0 : (pieces[state.pieces - 1]?.source ?? state.sources.length) + 1;
  checkSources(folder.path, state.sources.slice(0, read), sources, first);
  if (state.plan !== part) {
    throw new UserError(`Cannot prepare into ${folder.path}: it was made from another input; ${ANOTHER}`);
  }
  const kept = now.map((source, index) => index < read ? { ...source, sha256: state.sources[index].sha256 } : source);
  return { ...state, sources: kept };
}
