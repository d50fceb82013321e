/** The manifest of what was prepared, whole or merged of parts, and what is told of it. It reads and writes nothing. */
import { type Manifest, type Skipped, SPLITS, TOKENIZER_FOLDER } from "./manifest.ts";
import { documentsIn, type SplitEntries } from "./prepare_output.ts";
import { REASONS, type Settings, type SourceState } from "./prepare_state.ts";
import type { ShardFormat } from "./shards.ts";

/** All that a manifest is made of. */
export interface Prepared {
  readonly settings: Settings;
  readonly format: ShardFormat;
  /** Those of local files have their hash. */
  readonly sources: readonly SourceState[];
  readonly splits: SplitEntries;
  /** Without the files that were left out whole. */
  readonly skipped: Skipped;
  /** Why those were. */
  readonly badFiles: readonly string[];
}

export function manifestOf({ settings, format, sources, splits, skipped, badFiles }: Prepared): Manifest {
  const { context, tokenizer, column, splitOn, validation, seed, shardTokens } = settings;
  return {
    format: "wgpt-rows",
    version: 1,
    context,
    vocabSize: format.vocabSize,
    endOfText: format.endOfText,
    tokenizer: { folder: TOKENIZER_FOLDER, hash: tokenizer },
    options: { column, splitOn, validation, seed, shardTokens },
    sources: sources.map(({ path, format, bytes, sha256, tag = "" }) => {
      return { path, format, bytes, hash: sha256 === undefined ? tag : `sha256:${sha256}` };
    }),
    splits,
    skipped: {
      ...skipped,
      files: badFiles.length,
      reasons: [...badFiles, ...skipped.reasons].slice(0, REASONS),
    },
  };
}

/** What was prepared, in lines. */
export function describe({ splits, skipped, context, options }: Manifest): string[] {
  const lines = SPLITS.filter((split) => split === "train" || splits[split].documents > 0).map((split) => {
    const { documents, tokens, rows } = splits[split];
    return `${split} ${count(documents)} documents, ${count(tokens)} tokens, ${count(rows)} rows of ${context} + 1`;
  });
  lines.push(...describeSkipped(skipped));
  if (options.validation > 0 && splits.validation.documents === 0) {
    lines.push(
      `warning: of ${count(documentsIn(splits))} documents none was held out: raise --validation or split more`,
    );
  }
  return lines;
}

export function describeSkipped({ files, rowGroups, documents }: Skipped): string[] {
  if (files + rowGroups + documents === 0) return [];
  return [`skipped as corrupt: ${files} files, ${rowGroups} row groups, ${documents} documents`];
}

function count(value: number): string {
  return value.toLocaleString("en-US");
}
