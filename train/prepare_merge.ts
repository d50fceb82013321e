/**
 * Joins parts that were prepared beside each other: the same bytes as if all had been prepared at once. Interrupted, it goes
 * on where it stopped. It reads no source and tokenizes nothing.
 */
import { join } from "node:path";
import { UserError } from "../model/errors.ts";
import { readJson } from "../model/json_fields.ts";
import { progress, silent } from "../model/progress.ts";
import { loadTokenizer } from "../model/tokenizer.ts";
import { type Manifest, readManifest, type Skipped, TOKENIZER_FOLDER } from "./manifest.ts";
import { describe, manifestOf, type Prepared } from "./prepare_manifest.ts";
import { emptySplits, type Sink, SplitSink } from "./prepare_output.ts";
import { CheckpointPace } from "./prepare_pace.ts";
import { documentsOfPart, partFolder, type PartManifest, partsIn } from "./prepare_parts.ts";
import { nothingSkipped, OutputFolder, PART, REASONS, type SourceState, type State } from "./prepare_state.ts";
import type { ShardFormat } from "./shards.ts";

export interface MergeOptions {
  /** The folder that holds the parts. */
  readonly out: string;
  /** Prints no progress. */
  readonly quiet?: boolean;
  /** Seconds of work that an interruption may cost; 0 keeps every document. Default: 2. */
  readonly checkpointSeconds?: number;
}

/**
 * Joins the parts in a folder, and removes them when their data is whole.
 *
 * @throws UserError where parts are missing, unfinished, damaged, or were made differently; all of them stay then.
 */
export async function mergeParts(options: MergeOptions): Promise<Manifest> {
  const { out } = options;
  using folder = new OutputFolder(out, "merge");
  if (!folder.finished) await merge(folder, await readParts(out), options);
  folder.clearUp();
  for (const part of partsIn(out)) await Deno.remove(partFolder(out, part), { recursive: true });
  return await readManifest(out);
}

async function merge(
  folder: OutputFolder,
  parts: readonly PartManifest[],
  { quiet = false, checkpointSeconds = 2 }: MergeOptions,
): Promise<void> {
  const [{ settings, vocabSize, endOfText, badFiles }] = parts;
  const format: ShardFormat = { context: settings.context, vocabSize, endOfText };
  const sources = joinedSources(folder.path, parts);
  const skipped = joinedSkips(parts);
  const state = await resume(folder, { settings, sources, skipped, parts: parts.length });
  const tokenizer = await loadTokenizer(join(partFolder(folder.path, parts[0].part), TOKENIZER_FOLDER));
  await tokenizer.save(join(folder.path, TOKENIZER_FOLDER));
  using sink = new SplitSink(folder.path, format, settings, state.splits);
  const total = parts.reduce((sum, { documents }) => sum + documents.documents, 0);
  const shown = quiet ? silent : progress({ label: "merge", total, unit: "documents", from: sink.documents });
  try {
    const pace = new CheckpointPace(
      checkpointSeconds,
      () => folder.writeState({ ...state, splits: sink.checkpoint() }),
    );
    for (const part of parts) {
      await append(folder.path, parts, part, sink, async () => {
        await pace.maybe();
        shown.update(sink.documents);
      });
    }
    const manifest = manifestOf({ settings, format, sources, splits: sink.finish(), skipped, badFiles });
    await folder.finish(manifest);
    for (const line of describe(manifest)) shown.line(line);
  } finally {
    shown.finish();
  }
}

/** Adds those documents of a part that the sink doesn't have yet. */
async function append(
  out: string,
  parts: readonly PartManifest[],
  part: PartManifest,
  sink: Sink,
  added: () => Promise<void>,
): Promise<void> {
  const before = parts.slice(0, part.part.number - 1).reduce((sum, { documents }) => sum + documents.documents, 0);
  const first = Math.max(0, sink.documents - before);
  if (first >= part.documents.documents) return;
  for (const { tokens, textBytes } of documentsOfPart(partFolder(out, part.part), part, first)) {
    sink.add(tokens, textBytes);
    await added();
  }
}

/** The state to go on from. */
async function resume(folder: OutputFolder, wanted: Omit<State, "version" | "pieces" | "splits">): Promise<State> {
  const fresh: State = { version: 1, pieces: 0, splits: emptySplits, ...wanted };
  const state = await folder.state();
  if (state === undefined) {
    await folder.writeState(fresh);
    return fresh;
  }
  const same = ({ splits: _, ...rest }: State) => JSON.stringify(rest);
  if (same(state) === same(fresh)) return state;
  throw new UserError(
    `Cannot merge parts in ${folder.path}: another prepare or other parts had begun to write there; remove its ` +
      "progress.json to begin again",
  );
}

/** All parts in their order. @throws UserError where one is missing, or was made differently from the first. */
async function readParts(out: string): Promise<PartManifest[]> {
  const refuse = (what: string): never => {
    throw new UserError(`Cannot merge parts in ${out}: ${what}`);
  };
  const found = partsIn(out);
  if (found.length === 0) refuse("there are none; make them with deno task prepare --shard 1/N, 2/N, …");
  const [{ of }] = found;
  const other = found.find((part) => part.of !== of);
  if (other !== undefined) refuse(`it holds parts of ${of} and parts of ${other.of}; remove those that aren't wanted`);
  const parts: PartManifest[] = [];
  for (let number = 1; number <= of; number++) {
    const path = join(partFolder(out, { number, of }), PART);
    const state = !found.some((part) => part.number === number)
      ? "is missing; make it"
      : !await Deno.stat(path).then(({ isFile }) => isFile, () => false)
      ? "isn't finished; go on with it"
      : undefined;
    if (state !== undefined) refuse(`part ${number} of ${of} ${state} with --shard ${number}/${of}`);
    const part = await readJson(path) as PartManifest;
    if (part?.format !== "wgpt-part" || part.version !== 1) refuse(`${path} is damaged; remove its folder`);
    parts.push(part);
  }
  const [first, ...rest] = parts;
  for (const part of rest) {
    const difference = differenceOf(first, part);
    if (difference !== undefined) {
      refuse(
        `part 1 was made with ${difference[0]}, part ${part.part.number} with ${difference[1]}; ` +
          "remove the folders of those that are wrong and make them again",
      );
    }
  }
  return parts;
}

/** What one part was made with and another wasn't. */
function differenceOf(a: PartManifest, b: PartManifest): readonly [string, string] | undefined {
  for (const key of Object.keys(a.settings) as (keyof Prepared["settings"])[]) {
    if (a.settings[key] === b.settings[key]) continue;
    return key === "tokenizer"
      ? ["one tokenizer", "another"]
      : [`${key} ${a.settings[key]}`, `${key} ${b.settings[key]}`];
  }
  for (let index = 0; index < Math.max(a.sources.length, b.sources.length); index++) {
    const [one, other] = [a, b].map(({ sources }) => sources[index]);
    const same = one?.path === other?.path && one.bytes === other.bytes && one.tag === other.tag;
    const hashes = [one?.sha256, other?.sha256];
    if (!same || (hashes[0] !== hashes[1] && !hashes.includes(undefined))) return [nameOf(one), nameOf(other)];
  }
  return a.plan === b.plan ? undefined : ["one division of the input", "another"];
}

function nameOf(source: SourceState | undefined): string {
  if (source === undefined) return "no such file";
  const { path, bytes, sha256, tag } = source;
  const version = sha256 ?? tag;
  return `${path} of ${bytes} bytes${version === undefined ? "" : ` (${version.slice(0, 12)})`}`;
}

/** The sources with what each part knows of their hashes. */
function joinedSources(out: string, parts: readonly PartManifest[]): SourceState[] {
  return parts[0].sources.map((source, index) => {
    const hashes = new Set(parts.map(({ sources }) => sources[index].sha256).filter((hash) => hash !== undefined));
    if (hashes.size > 1) {
      throw new UserError(
        `Cannot merge parts in ${out}: ${source.path} changed between them; prepare all of them again`,
      );
    }
    return { ...source, sha256: [...hashes][0] };
  });
}

function joinedSkips(parts: readonly PartManifest[]): Skipped {
  return parts.reduce((sum, { skipped }) => ({
    files: 0,
    rowGroups: sum.rowGroups + skipped.rowGroups,
    documents: sum.documents + skipped.documents,
    reasons: [...sum.reasons, ...skipped.reasons].slice(0, REASONS),
  }), nothingSkipped);
}
