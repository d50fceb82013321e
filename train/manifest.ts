/** What stands in a folder of prepared data: its manifest, read strictly. It doesn't know how the data was made. */
import { join } from "node:path";
import { UserError } from "../model/errors.ts";

export const MANIFEST = "manifest.json";
/** The folder within the data that holds the tokenizer, as a Hugging Face folder. */
export const TOKENIZER_FOLDER = "tokenizer";

/** Names of folders within the data that hold parts of it, to be merged. */
export const PART_FOLDER = /^part-(\d{5,})-of-(\d{5,})$/;

export type Split = "train" | "validation";
export const SPLITS: readonly Split[] = ["train", "validation"];

export interface ShardEntry {
  readonly file: string;
  readonly rows: number;
  /** Tokens that aren't padding. */
  readonly tokens: number;
  /** Documents that start in this shard. */
  readonly documents: number;
  readonly bytes: number;
  readonly sha256: string;
}

export interface SplitEntry {
  readonly documents: number;
  /** Tokens with one end-of-text for each document, without padding. */
  readonly tokens: number;
  /** Bytes of the documents' text in UTF-8. */
  readonly textBytes: number;
  readonly rows: number;
  readonly shards: readonly ShardEntry[];
}

export interface SourceEntry {
  /** As the user named it; within a folder with the rest of the path. */
  readonly path: string;
  readonly format: string;
  readonly bytes: number;
  /** "sha256:…" of a local file; what the server says of its version otherwise. */
  readonly hash: string;
}

/** What the result depends on besides sources and tokenizer. */
export interface PackingOptions {
  readonly column: string;
  readonly splitOn: string;
  /** Fraction of documents held out. */
  readonly validation: number;
  readonly seed: number;
  readonly shardTokens: number;
}

export interface Skipped {
  readonly files: number;
  readonly rowGroups: number;
  readonly documents: number;
  /** Why, for the first hundred. */
  readonly reasons: readonly string[];
}

export interface Manifest {
  readonly format: "wgpt-rows";
  readonly version: 1;
  readonly context: number;
  readonly vocabSize: number;
  readonly endOfText: number;
  readonly tokenizer: { readonly folder: string; readonly hash: string };
  readonly options: PackingOptions;
  readonly sources: readonly SourceEntry[];
  readonly splits: Readonly<Record<Split, SplitEntry>>;
  readonly skipped: Skipped;
}

/**
 * Reads and checks the manifest of a data folder.
 *
 * @throws UserError where there is none, preparing wasn't finished, or it is malformed.
 */
export async function readManifest(folder: string): Promise<Manifest> {
  const path = join(folder, MANIFEST);
  let text: string;
  try {
    text = await Deno.readTextFile(path);
  } catch {
    throw await whyUnfinished(folder);
  }
  try {
    const manifest = JSON.parse(text);
    check(manifest);
    return manifest;
  } catch (error) {
    throw new UserError(`Cannot read ${path}: ${(error as Error).message}; prepare the data again`);
  }
}

async function whyUnfinished(folder: string): Promise<UserError> {
  const names = await Array.fromAsync(Deno.readDir(folder), ({ name }) => name).catch((): string[] => []);
  const again = names.some((name) => PART_FOLDER.test(name))
    ? `it holds parts; join them with \`deno task prepare --merge --out ${folder}\``
    : names.includes("progress.json")
    ? "preparing it was interrupted; run the same `deno task prepare` again"
    : undefined;
  return new UserError(
    again === undefined
      ? `Cannot find data in ${folder}: it has no ${MANIFEST}; make it with \`deno task prepare\``
      : `Cannot use data in ${folder}: ${again}`,
  );
}

function check(manifest: Manifest): void {
  if (manifest?.format !== "wgpt-rows") throw new Error(`its format is ${manifest?.format}, wanted wgpt-rows`);
  if (manifest.version !== 1) throw new Error(`its version is ${manifest.version}, wanted 1`);
  for (const field of ["context", "vocabSize", "endOfText"] as const) count(manifest[field], field);
  if (typeof manifest.tokenizer?.hash !== "string") throw new Error("it names no tokenizer");
  for (const split of SPLITS) {
    const entry = manifest.splits?.[split];
    for (const field of ["documents", "tokens", "textBytes", "rows"] as const) {
      count(entry?.[field], `${split}.${field}`);
    }
    if (!Array.isArray(entry.shards)) throw new Error(`${split}.shards is no list`);
    for (const shard of entry.shards) {
      if (typeof shard.file !== "string" || !/^[\w.-]+$/.test(shard.file)) {
        throw new Error(`${split} has a shard without a name`);
      }
      for (const field of ["rows", "tokens", "documents", "bytes"] as const) {
        count(shard[field], `${shard.file} ${field}`);
      }
    }
    const rows = entry.shards.reduce((sum, shard) => sum + shard.rows, 0);
    if (rows !== entry.rows) throw new Error(`its ${split} shards have ${rows} rows, the split says ${entry.rows}`);
  }
}

function count(value: unknown, name: string): void {
  if (!Number.isSafeInteger(value) || value as number < 0) throw new Error(`${name} is ${value}, wanted a count`);
}
