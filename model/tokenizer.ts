/** Byte-level BPE tokenizers: loading them by name or from files, and training them. It knows no model. */

import { join } from "node:path";
import { trainMerges } from "./bpe_train.ts";
import { tokenOfBytes } from "./byte_level.ts";
import { UserError } from "./errors.ts";
import { explainIo } from "./files.ts";
import { gpt2Vocabulary, type Vocabulary } from "./gpt2_vocabulary.ts";
import { createSplitter } from "./pre_tokenizer.ts";
import { createTokenizer, END_OF_TEXT, type Tokenizer } from "./tokenizer_codec.ts";
import type { TokenizerJson } from "./tokenizer_json.ts";
import { WordCounts } from "./word_counts.ts";

export { createTokenizer } from "./tokenizer_codec.ts";
export type { StreamDecoder, Tokenizer, TokenizerOptions } from "./tokenizer_codec.ts";

export interface TrainTokenizerOptions {
  /** Tokens in all: 256 bytes, merges, and `<|endoftext|>` with the last id. A text too small for it gives fewer. */
  readonly vocabSize: number;
  readonly onProgress?: (progress: TrainProgress) => void;
}

export interface TrainProgress {
  readonly phase: "counting words" | "merging";
  /** Bytes of text counted, or tokens made. */
  readonly done: number;
  /** Tokens wanted; of the text nobody knows how much will come. */
  readonly total: number | undefined;
}

const gpt2PreTokenizer = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true };

/** tokenizer.json for GPT-2's words and these tokens, with `<|endoftext|>` as the last. */
function jsonOf({ tokens, merges }: Vocabulary, preTokenizer = gpt2PreTokenizer): TokenizerJson {
  const all = tokens.includes(END_OF_TEXT) ? tokens : [...tokens, END_OF_TEXT];
  const endOfText = {
    id: all.indexOf(END_OF_TEXT),
    content: END_OF_TEXT,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: true,
  };
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: [endOfText],
    normalizer: null,
    pre_tokenizer: preTokenizer,
    post_processor: { type: "ByteLevel", add_prefix_space: true, trim_offsets: false, use_regex: true },
    decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: Object.fromEntries(all.map((token, id) => [token, id])),
      merges: merges.map((pair) => pair.join(" ")),
    },
  };
}

function configOf(tokenizerClass: string, more: Readonly<Record<string, unknown>> = {}) {
  return {
    add_prefix_space: false,
    bos_token: END_OF_TEXT,
    eos_token: END_OF_TEXT,
    unk_token: END_OF_TEXT,
    clean_up_tokenization_spaces: false,
    tokenizer_class: tokenizerClass,
    ...more,
  };
}

/**
 * Learns a byte-level BPE of GPT-2's kind: the most frequent pair of adjacent tokens within words is merged first; of equally
 * frequent pairs the one with the smaller left id, then the smaller right id (Sennrich et al. 2016). The same texts give the
 * same tokenizer.
 *
 * @throws UserError for a size below 257.
 */
export function trainTokenizer(texts: Iterable<string>, options: TrainTokenizerOptions): Tokenizer {
  const { vocabSize, onProgress } = options;
  if (!Number.isInteger(vocabSize) || vocabSize < 257) {
    throw new UserError(`Cannot train a tokenizer of ${vocabSize} tokens: 256 bytes and the end of text make 257`);
  }
  const split = createSplitter(gpt2PreTokenizer);
  const words = new WordCounts();
  let counted = 0;
  for (const text of texts) {
    const { bytes, endOf } = split(text);
    for (let from = 0; from < bytes.length;) {
      const to = endOf(from);
      words.add(bytes, from, to);
      from = to;
    }
    onProgress?.({ phase: "counting words", done: counted += bytes.length, total: undefined });
  }
  const vocabulary = trainMerges(
    words,
    vocabSize - 1,
    (tokens) => onProgress?.({ phase: "merging", done: tokens + 1, total: vocabSize }),
  );
  return createTokenizer(jsonOf(vocabulary), configOf("PreTrainedTokenizerFast"), "just trained");
}

async function readText(path: string): Promise<string | undefined> {
  try {
    return await Deno.readTextFile(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) return undefined;
    throw explainIo("load tokenizer", path, error);
  }
}

function parseJson(text: string, path: string): Record<string, unknown> {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new UserError(`Cannot load tokenizer ${path}: ${(error as Error).message}`);
  }
}

async function readConfig(folder: string): Promise<Record<string, unknown>> {
  const path = join(folder, "tokenizer_config.json");
  const text = await readText(path);
  return text === undefined ? configOf("PreTrainedTokenizerFast") : parseJson(text, path);
}

/** vocab.json and merges.txt, GPT-2's own form: tokens with ids, and a merge a line under a line with the version. */
function jsonOfPair(vocab: Record<string, unknown>, merges: string): TokenizerJson {
  const lines = merges.split(/\r?\n/).filter((line) => line !== "" && !line.startsWith("#version"));
  const json = jsonOf({ tokens: [], merges: [] });
  const added = END_OF_TEXT in vocab ? json.added_tokens : [];
  return { ...json, added_tokens: added, model: { ...json.model, vocab, merges: lines } };
}

async function loadNamed(name: string): Promise<Tokenizer | undefined> {
  if (name === "gpt2") {
    return createTokenizer(jsonOf(await gpt2Vocabulary()), configOf("GPT2Tokenizer", { model_max_length: 1024 }), name);
  }
  if (name === "bytes") {
    const tokens = Array.from({ length: 256 }, (_, byte) => tokenOfBytes([byte]));
    const json = jsonOf({ tokens, merges: [] }, { ...gpt2PreTokenizer, use_regex: false });
    return createTokenizer(json, configOf("PreTrainedTokenizerFast"), name);
  }
  return undefined;
}

/**
 * Loads a tokenizer: `gpt2` (OpenAI's, 50,257 ids), `bytes` (the id of a byte is its value; 256 ends a text), a folder with
 * tokenizer.json or with vocab.json and merges.txt, or a tokenizer.json file. A folder called gpt2 is ./gpt2.
 *
 * @throws UserError where nothing is found or the content can't be used.
 */
export async function loadTokenizer(folderOrFileOrName: string): Promise<Tokenizer> {
  const named = await loadNamed(folderOrFileOrName);
  if (named) return named;
  const isFile = folderOrFileOrName.endsWith(".json");
  const folder = isFile ? join(folderOrFileOrName, "..") : folderOrFileOrName;
  const path = isFile ? folderOrFileOrName : join(folder, "tokenizer.json");
  const text = await readText(path);
  if (text !== undefined) return createTokenizer(parseJson(text, path), await readConfig(folder), path);
  const vocabPath = join(folder, "vocab.json");
  const [vocab, merges] = await Promise.all([vocabPath, join(folder, "merges.txt")].map(readText));
  if (isFile || vocab === undefined || merges === undefined) {
    throw new UserError(
      `Cannot load tokenizer ${folderOrFileOrName}: found no tokenizer.json and no vocab.json with merges.txt; names are gpt2 and bytes`,
    );
  }
  return createTokenizer(jsonOfPair(parseJson(vocab, vocabPath), merges), await readConfig(folder), vocabPath);
}
