/** Reads a Hugging Face tokenizer.json of the byte-level BPE kind, strictly. It knows no files and encodes nothing. */

import { type AddedToken, createSegmenter, type SegmentText } from "./added_tokens.ts";
import { type BpeRules, byteKey } from "./bpe.ts";
import { byteCharacters, bytesOfToken, tokenOfBytes } from "./byte_level.ts";
import { UserError } from "./errors.ts";
import { createSplitter, preTokenizerSequence, type Splitter } from "./pre_tokenizer.ts";

type Json = Readonly<Record<string, unknown>>;

/** A tokenizer.json's content. */
export interface TokenizerJson extends Json {
  readonly model: Json;
}

export interface TokenizerParts {
  readonly rules: BpeRules;
  readonly split: Splitter;
  readonly segment: SegmentText;
  /** Whether a text in which no special token is sought is one segment as it stands. */
  readonly plain: boolean;
  /** The bytes of every id; undefined where no token has it. */
  readonly tokens: readonly (Uint8Array | undefined)[];
  readonly ids: ReadonlyMap<string, number>;
  readonly addedTokens: readonly AddedToken[];
  /** Everything that decides ids, written one way: the same for each form of the same tokenizer. */
  readonly canonical: string;
}

const MAX_ID = 1 << 24;

/** The message is the fault alone: who knows the file puts its name before it. */
function fail(fault: string): never {
  throw new UserError(fault);
}

function object(value: unknown, name: string): Json {
  if (typeof value !== "object" || value === null || Array.isArray(value)) fail(`${name} is not an object`);
  return value as Json;
}

function checkId(id: unknown, token: string): number {
  if (!Number.isInteger(id) || (id as number) < 0 || (id as number) >= MAX_ID) {
    fail(`token ${JSON.stringify(token)} has id ${JSON.stringify(id)}, wanted an integer from 0 to ${MAX_ID - 1}`);
  }
  return id as number;
}

function readVocabulary(model: Json): Map<string, number> {
  const vocabulary = new Map<string, number>();
  const taken = new Map<number, string>();
  for (const [token, value] of Object.entries(object(model.vocab, "model.vocab"))) {
    const id = checkId(value, token);
    const other = taken.get(id);
    if (other !== undefined) fail(`tokens ${JSON.stringify(other)} and ${JSON.stringify(token)} both have id ${id}`);
    taken.set(id, token);
    vocabulary.set(token, id);
  }
  return vocabulary;
}

function checkModel(model: Json): void {
  const type = model.type ?? (model.merges === undefined ? undefined : "BPE"); // early files name no type
  if (type !== "BPE") fail(`its model is of type ${JSON.stringify(type ?? null)}, wanted "BPE"`);
  if (model.dropout) fail(`model.dropout is ${JSON.stringify(model.dropout)}, wanted none`);
  for (const affix of ["continuing_subword_prefix", "end_of_word_suffix"]) {
    if (model[affix]) fail(`model.${affix} is ${JSON.stringify(model[affix])}, wanted none`);
  }
}

/** The two halves of each merge, from "a b" or ["a", "b"]. */
function* mergePairs(merges: unknown): Generator<[string, string]> {
  if (!Array.isArray(merges)) fail("model.merges is not a list");
  for (const [rank, merge] of merges.entries()) {
    const pair = typeof merge === "string" ? merge.split(" ") : merge;
    if (!Array.isArray(pair) || pair.length !== 2 || pair.some((half) => typeof half !== "string")) {
      fail(`merge ${rank} is ${JSON.stringify(merge)}, wanted two tokens`);
    }
    yield pair as [string, string];
  }
}

function readMerges(model: Json, vocabulary: ReadonlyMap<string, number>): [number, number, number][] {
  const merges: [number, number, number][] = [];
  const idOf = (token: string, pair: readonly string[]) =>
    vocabulary.get(token) ??
      fail(`merge ${merges.length} of ${JSON.stringify(pair)} needs ${JSON.stringify(token)}, which is no token`);
  for (const pair of mergePairs(model.merges)) {
    merges.push([idOf(pair[0], pair), idOf(pair[1], pair), idOf(pair[0] + pair[1], pair)]);
  }
  return merges;
}

function readAddedTokens(json: Json, vocabulary: ReadonlyMap<string, number>): AddedToken[] {
  const list = json.added_tokens ?? [];
  if (!Array.isArray(list)) fail("added_tokens is not a list");
  const taken = new Map([...vocabulary].map(([token, id]) => [id, token]));
  return list.map((entry) => {
    const token = object(entry, "an added token");
    const content = token.content;
    if (typeof content !== "string" || content === "") fail(`an added token has content ${JSON.stringify(content)}`);
    const id = vocabulary.get(content) ?? checkId(token.id, content);
    const other = taken.get(id) ?? content;
    if (other !== content) fail(`tokens ${JSON.stringify(other)} and ${JSON.stringify(content)} both have id ${id}`);
    taken.set(id, content);
    const flag = (name: string) => token[name] === true;
    return {
      id,
      content,
      single_word: flag("single_word"),
      lstrip: flag("lstrip"),
      rstrip: flag("rstrip"),
      normalized: flag("normalized"),
      special: flag("special"),
    };
  });
}

const unicodeForms = ["NFC", "NFD", "NFKC", "NFKD"];

function readNormalizer(normalizer: unknown): ((text: string) => string) | undefined {
  if (normalizer === null || normalizer === undefined) return undefined;
  const { type, normalizers } = object(normalizer, "normalizer");
  if (type === "Sequence" && Array.isArray(normalizers)) {
    const steps = normalizers.map(readNormalizer).filter((step) => step !== undefined);
    return steps.length === 0 ? undefined : (text) => steps.reduce((changed, step) => step(changed), text);
  }
  if (unicodeForms.includes(type as string)) return (text) => text.normalize(type as string);
  return fail(`its normalizer is ${JSON.stringify(type)}, supported are ${unicodeForms.join(", ")} and their Sequence`);
}

function checkDecoder(decoder: unknown): void {
  if (decoder === null || decoder === undefined) return;
  const { type, decoders } = object(decoder, "decoder");
  const types = type === "Sequence" && Array.isArray(decoders) ? decoders.map((part) => part?.type) : [type];
  if (!types.includes("ByteLevel")) fail(`its decoder is ${JSON.stringify(types.join(", "))}, wanted "ByteLevel"`);
}

function readRules(model: Json, vocabulary: ReadonlyMap<string, number>): BpeRules {
  const byteIds = Int32Array.from(byteCharacters, (character) => vocabulary.get(character) ?? -1);
  const missing = byteIds.indexOf(-1);
  if (missing >= 0 && model.byte_fallback === true) fail(`it has no token for byte ${missing}, but byte_fallback`);
  const unknown = typeof model.unk_token === "string" ? vocabulary.get(model.unk_token) : undefined;
  return {
    byteIds,
    merges: readMerges(model, vocabulary),
    unknown,
    fuseUnknown: model.fuse_unk === true,
    wholeWords: model.ignore_merges === true ? wordsOf(vocabulary) : undefined,
  };
}

function wordsOf(vocabulary: ReadonlyMap<string, number>): Map<string, number> {
  const words = new Map<string, number>();
  for (const [token, id] of vocabulary) {
    const bytes = bytesOfToken(token);
    if (tokenOfBytes(bytes) === token) words.set(byteKey(bytes), id);
  }
  return words;
}

function canonicalForm(json: Json, rules: BpeRules, ids: ReadonlyMap<string, number>, added: readonly AddedToken[]) {
  const normalizer = json.normalizer ?? null;
  return JSON.stringify({
    vocabulary: [...ids].sort((a, b) => a[1] - b[1]),
    merges: rules.merges,
    unknown: rules.unknown ?? null,
    fuseUnknown: rules.fuseUnknown,
    wholeWords: rules.wholeWords !== undefined,
    added: added.map((token) => ({ ...token, normalized: token.normalized && normalizer !== null }))
      .sort((a, b) => a.id - b.id),
    normalizer,
    words: preTokenizerSequence(json.pre_tokenizer).map((step) =>
      step.type === "ByteLevel" ? [step.add_prefix_space === true, step.use_regex !== false] : step
    ),
  });
}

/** Throws UserError where the content is malformed, not byte-level BPE, or uses what isn't supported. */
export function parseTokenizer(content: unknown): TokenizerParts {
  const json = object(content, "its content");
  const model = object(json.model, "model");
  checkModel(model);
  checkDecoder(json.decoder);
  const split = createSplitter(json.pre_tokenizer);
  const ids = readVocabulary(model);
  const rules = readRules(model, ids);
  const addedTokens = readAddedTokens(json, ids);
  const normalize = readNormalizer(json.normalizer);

  const tokens: (Uint8Array | undefined)[] = [];
  for (const [token, id] of ids) tokens[id] = bytesOfToken(token);
  const encoder = new TextEncoder();
  for (const { id, content } of addedTokens) {
    if (!ids.has(content)) tokens[id] = encoder.encode(content);
    ids.set(content, id);
  }
  return {
    rules,
    split,
    segment: createSegmenter(addedTokens, normalize ?? ((text) => text)),
    plain: normalize === undefined && addedTokens.every((token) => token.special),
    tokens,
    ids,
    addedTokens,
    canonical: canonicalForm(json, rules, ids, addedTokens),
  };
}
