/** Prepares one of several parts of the data, beside others on this machine or elsewhere. It joins none. */
import { createHash } from "node:crypto";
import { join } from "node:path";
import { UserError } from "../model/errors.ts";
import { readJson } from "../model/json_fields.ts";
import { TOKENIZER_FOLDER } from "./manifest.ts";
import { begin, type PrepareOptions, resume, runOptions } from "./prepare.ts";
import { describeSkipped } from "./prepare_manifest.ts";
import { partFolder, type PartManifest, PartSink, refuseOthers, tableHash } from "./prepare_parts.ts";
import { type Part, piecesOfPart } from "./prepare_pieces.ts";
import { type Plan, Run } from "./prepare_run.ts";
import {
  ANOTHER,
  checkSettings,
  checkSources,
  hashed,
  OutputFolder,
  PART,
  type Settings,
  type SourceState,
} from "./prepare_state.ts";

const MOST_PARTS = 10_000;

/**
 * Prepares part `number` of `of` into a folder of its own in `out`. All parts need the same options and sources; each document
 * is in one of them.
 *
 * @throws UserError as prepare does, and where `out` holds something else than parts of as many.
 */
export async function preparePart(options: PrepareOptions, part: Part): Promise<PartManifest> {
  checkPart(part);
  refuseOthers(options.out, part);
  const { settings, tokenizer, format, plan: whole } = await begin(options);
  const plan: Plan = { ...whole, pieces: piecesOfPart(whole.pieces, part) };
  const digest = digestOf(whole);
  const path = partFolder(options.out, part);
  using folder = new OutputFolder(path, "part");
  if (folder.finished) {
    folder.clearUp();
    return await finishedPart(path, settings, plan, digest);
  }
  const state = await resume(folder, settings, plan, digest);
  await tokenizer.save(join(path, TOKENIZER_FOLDER));
  const sink = new PartSink(path, format, settings.shardTokens, state.splits);
  using run = new Run(runOptions(options, format), plan, state, folder, sink);
  return await run.finish(({ sources, splits, skipped }): PartManifest => ({
    format: "wgpt-part",
    version: 1,
    part,
    plan: digest,
    settings,
    vocabSize: format.vocabSize,
    endOfText: format.endOfText,
    sources: part.number === 1 ? withUnread(sources, whole) : sources,
    documents: splits.train,
    table: tableHash(path),
    skipped,
    badFiles: plan.badFiles,
  }), (made) => describePart(made, options.out));
}

function checkPart({ number, of }: Part): void {
  if (Number.isInteger(number) && Number.isInteger(of) && number >= 1 && number <= of && of <= MOST_PARTS) return;
  throw new UserError(
    `Cannot prepare part ${number} of ${of}: wanted a number from 1 to ${of}, at most ${MOST_PARTS}`,
    2,
  );
}

/** What every part must agree on beside its settings. */
function digestOf({ sources, pieces, badFiles }: Plan): string {
  const named = sources.map(({ path, format, bytes, tag }) => [path, format, bytes, tag]);
  return createHash("sha256").update(JSON.stringify([named, pieces, badFiles])).digest("hex");
}

/** Sources of which no part reads anything, empty ones for example, have their hash from the first part. */
function withUnread(states: readonly SourceState[], { sources, pieces }: Plan): SourceState[] {
  const read = new Set(pieces.map(({ source }) => source));
  return states.map((state, index) => read.has(index) ? state : hashed([state], [sources[index]])[0]);
}

async function finishedPart(path: string, settings: Settings, { sources, pieces }: Plan, digest: string) {
  const made = await readJson(join(path, PART)) as PartManifest;
  checkSettings(path, made.settings, settings);
  const [first, last] = [pieces.at(0)?.source ?? 0, pieces.at(-1)?.source ?? -1];
  checkSources(path, made.sources.slice(0, last + 1), sources, first);
  if (made.plan === digest) return made;
  throw new UserError(`Cannot prepare into ${path}: it was made from another input; ${ANOTHER}`);
}

function describePart({ part, documents, skipped }: PartManifest, out: string): string[] {
  const counts = [documents.documents, documents.tokens].map((value) => value.toLocaleString("en-US"));
  return [
    `part ${part.number} of ${part.of}: ${counts[0]} documents, ${counts[1]} tokens`,
    ...describeSkipped(skipped),
    `when all ${part.of} are done: deno task prepare --merge --out ${out}`,
  ];
}
