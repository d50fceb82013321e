/** The data of a run: the folder named by --data, or the embedded corpus, prepared once and kept. It knows no model. */
import { createHash } from "node:crypto";
import { join } from "node:path";
import { UserError } from "../model/errors.ts";
import { loadTokenizer, type Tokenizer } from "../model/tokenizer.ts";
import type { Config } from "./config.ts";
import type { Console } from "./console.ts";
import { type Manifest, readManifest, TOKENIZER_FOLDER } from "./manifest.ts";
import { prepareCorpus } from "./prepared_corpus.ts";
import { unigramEntropy } from "./unigram.ts";

export interface TrainingData {
  readonly folder: string;
  readonly manifest: Manifest;
  readonly tokenizer: Tokenizer;
  /** Changes where any token of the data changes. */
  readonly hash: string;
  /** Nats a held-out token costs a guesser who knows only how often each stands in the training text. */
  readonly unigramEntropy: number;
}

/**
 * Opens the data; `written` is what the user said in flags and config file.
 *
 * @throws UserError where there is none, it wasn't prepared for these settings, or its tokenizer is another than it says.
 */
export async function openData(config: Config, written: Partial<Config>, console: Console): Promise<TrainingData> {
  const folder = config.data === "" ? await prepareCorpus(config, console) : config.data;
  if (config.data !== "") refuseCorpusSettings(written);
  const manifest = await readManifest(folder);
  if (manifest.context !== config.context) {
    const next = `give --context ${manifest.context}, or prepare it again with --context ${config.context}`;
    throw new UserError(
      `Cannot train on ${folder}: it was prepared with context ${manifest.context}, wanted ${config.context}; ${next}`,
    );
  }
  const tokenizer = await loadTokenizer(join(folder, TOKENIZER_FOLDER));
  if (tokenizer.hash !== manifest.tokenizer.hash) {
    throw new UserError(
      `Cannot train on ${folder}: its tokenizer isn't the one it was prepared with; prepare it again`,
    );
  }
  return { folder, manifest, tokenizer, hash: identity(manifest), unigramEntropy: unigramEntropy(folder, manifest) };
}

/** The corpus's settings are silent where other data is named, so saying them is a mistake. */
function refuseCorpusSettings(written: Partial<Config>): void {
  for (const [name, flag] of [["tokenizer", "--tokenizer"], ["vocabularySize", "--vocabulary-size"]] as const) {
    if (written[name] !== undefined) {
      throw new UserError(`Drop ${flag}: data given by --data has the tokenizer it was prepared with`, 2);
    }
  }
}

function identity({ context, vocabSize, endOfText, tokenizer, splits }: Manifest): string {
  const shards = Object.values(splits).map(({ shards }) => shards.map(({ sha256 }) => sha256));
  return createHash("sha256").update(JSON.stringify([context, vocabSize, endOfText, tokenizer.hash, shards])).digest(
    "hex",
  );
}
