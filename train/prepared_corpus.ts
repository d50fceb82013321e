/** The embedded corpus as training data: a tokenizer trained on it, packed rows, kept under runs/.data for the next run. */
import { createHash } from "node:crypto";
import { join } from "node:path";
import { exists, replaceFolder } from "../model/files.ts";
import { loadTokenizer, trainTokenizer } from "../model/tokenizer.ts";
import type { Config } from "./config.ts";
import type { Console } from "./console.ts";
import { CORPUS, corpus } from "./corpus.ts";
import { MANIFEST } from "./manifest.ts";
import { RUNS } from "../model/runs.ts";

/** Share of the addresses held out: about a dozen. */
const HELD_OUT = 0.05;

type CorpusSettings = Pick<Config, "tokenizer" | "vocabularySize" | "context">;

/** Where the corpus stands, or will, for these settings. */
export async function corpusFolder({ tokenizer, vocabularySize, context }: CorpusSettings): Promise<string> {
  const made = tokenizer === "" ? `bpe-${vocabularySize}` : (await loadTokenizer(tokenizer)).hash;
  const key = createHash("sha256").update(JSON.stringify([CORPUS, made, context, HELD_OUT])).digest("hex").slice(0, 8);
  return join(RUNS, ".data", `${CORPUS}-${context}-${key}`);
}

/**
 * Prepares the corpus unless it is there already.
 *
 * @returns the folder.
 * @throws UserError where the disk refuses.
 */
export async function prepareCorpus(settings: CorpusSettings, console: Console): Promise<string> {
  const folder = await corpusFolder(settings);
  if (await exists(join(folder, MANIFEST))) return folder;
  const tokenizer = settings.tokenizer === ""
    ? await corpusTokenizer(settings.vocabularySize, console)
    : settings.tokenizer;
  console.line(`preparing the embedded corpus in ${folder}`);
  const { prepare } = await import("./prepare.ts"); // brings the Parquet readers with it
  await prepare({ input: [CORPUS], tokenizer, context: settings.context, out: folder, validation: HELD_OUT });
  return folder;
}

/** A byte-level BPE trained on the whole corpus. */
async function corpusTokenizer(vocabSize: number, console: Console): Promise<string> {
  const folder = join(RUNS, ".data", `${CORPUS}-bpe-${vocabSize}`);
  if (await exists(join(folder, "tokenizer.json"))) return folder;
  console.line(`training a tokenizer of ${vocabSize} tokens on the embedded corpus`);
  const texts = (await corpus()).map(({ text }) => text);
  const trained = trainTokenizer(texts, {
    vocabSize,
    onProgress: ({ phase, done, total }) =>
      console.status(`${phase}: ${done}${total === undefined ? " bytes" : ` of ${total}`}`),
  });
  await replaceFolder(folder, (temporary) => trained.save(temporary));
  return folder;
}
