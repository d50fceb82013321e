/** A tokenizer made from the content of tokenizer.json: text to ids and back. It knows no files but those it is saved to. */

import { createHash } from "node:crypto";
import { join } from "node:path";
import { type Bpe, createBpe } from "./bpe.ts";
import { UserError } from "./errors.ts";
import { explainIo } from "./files.ts";
import type { Words } from "./pre_tokenizer.ts";
import { parseTokenizer, type TokenizerJson, type TokenizerParts } from "./tokenizer_json.ts";

export interface TokenizerOptions {
  /** Takes the text of special tokens for those tokens; otherwise it is text like any other. */
  readonly allowSpecial?: boolean;
}

/** Decodes ids one by one: what is not yet a whole character waits for the next id. */
export interface StreamDecoder {
  push(id: number): string;
  /** What still waits, as U+FFFD. */
  flush(): string;
}

export interface Tokenizer {
  /** The largest id plus one. */
  readonly vocabSize: number;
  /** The id that ends a document: that of `<|endoftext|>`, else of the configuration's `eos_token`. */
  readonly endOfText: number | undefined;
  /** The ids of special tokens by their text. */
  readonly specialTokens: ReadonlyMap<string, number>;
  /** SHA-256 (hex) of everything that decides ids; the same however the tokenizer was stored. */
  readonly hash: string;
  /** The content of tokenizer_config.json. */
  readonly config: Readonly<Record<string, unknown>>;
  /** The ids of a text; none is added at its start or end. A lone surrogate counts as U+FFFD. */
  encode(text: string, options?: TokenizerOptions): Uint32Array;
  /** The text of ids, special tokens included; bytes that are no UTF-8 become U+FFFD. RangeError for an id without a token. */
  decode(ids: Iterable<number>): string;
  /** The bytes of one id. RangeError for an id without a token. */
  bytes(id: number): Uint8Array;
  decoder(): StreamDecoder;
  /** The content of tokenizer.json. */
  json(): TokenizerJson;
  /** Writes tokenizer.json and tokenizer_config.json into a folder, which is made if it isn't there. UserError where it can't. */
  save(folder: string): Promise<void>;
}

export const END_OF_TEXT = "<|endoftext|>";

interface Ids {
  data: Uint32Array;
  count: number;
}

function grow(ids: Ids, room: number): void {
  const data = new Uint32Array(2 * ids.data.length + room);
  data.set(ids.data);
  ids.data = data;
}

function encodeWords({ bytes, endOf }: Words, bpe: Bpe, ids: Ids): void {
  for (let from = 0; from < bytes.length;) {
    const to = endOf(from);
    if (ids.count + to - from > ids.data.length) grow(ids, to - from);
    ids.count = bpe.encodeWord(bytes, from, to, ids.data, ids.count);
    from = to;
  }
}

/** Keeps a byte order mark, which is a character like any other. */
function newTextDecoder(): TextDecoder {
  return new TextDecoder("utf-8", { ignoreBOM: true });
}

function joinBytes(parts: readonly Uint8Array[]): Uint8Array {
  const joined = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    joined.set(part, at);
    at += part.length;
  }
  return joined;
}

/** Special tokens stand in tokenizer_config.json as text or as an object with it. */
function textOfToken(token: unknown): string {
  return typeof token === "string" ? token : String((token as { content?: unknown } | undefined)?.content ?? "");
}

function parsed(json: unknown, source: string): TokenizerParts {
  try {
    return parseTokenizer(json);
  } catch (error) {
    if (error instanceof UserError) throw new UserError(`Cannot load tokenizer ${source}: ${error.message}`);
    throw error;
  }
}

function createEncoder({ rules, split, segment, plain }: TokenizerParts): Tokenizer["encode"] {
  const bpe = createBpe(rules);
  return (text, { allowSpecial = false } = {}) => {
    const ids: Ids = { data: new Uint32Array((text.length >> 1) + 16), count: 0 };
    for (const piece of plain && !allowSpecial ? [text] : segment(text, allowSpecial)) {
      if (typeof piece === "string") {
        encodeWords(split(piece), bpe, ids);
        continue;
      }
      if (ids.count === ids.data.length) grow(ids, 1);
      ids.data[ids.count++] = piece;
    }
    return ids.data.slice(0, ids.count);
  };
}

function createDecoders(tokens: readonly (Uint8Array | undefined)[]): Pick<Tokenizer, "decode" | "bytes" | "decoder"> {
  const bytesOf = (id: number): Uint8Array => {
    const bytes = tokens[id];
    if (bytes !== undefined) return bytes;
    const why = id >= 0 && id < tokens.length ? "no token has this id" : `ids are 0 to ${tokens.length - 1}`;
    throw new RangeError(`Cannot decode token ${id}: ${why}`);
  };
  return {
    decode: (ids) => newTextDecoder().decode(joinBytes(Array.from(ids, bytesOf))),
    bytes: (id) => bytesOf(id).slice(),
    decoder() {
      const decoder = newTextDecoder();
      return { push: (id) => decoder.decode(bytesOf(id), { stream: true }), flush: () => decoder.decode() };
    },
  };
}

/** A tokenizer from the content of tokenizer.json. UserError, naming the source, where that can't be used. */
export function createTokenizer(
  json: unknown,
  config: Readonly<Record<string, unknown>> = {},
  source = "tokenizer.json",
): Tokenizer {
  const parts = parsed(json, source);
  const { tokens, ids } = parts;
  let hash: string | undefined;
  return {
    vocabSize: tokens.length,
    endOfText: ids.get(END_OF_TEXT) ?? ids.get(textOfToken(config.eos_token)),
    specialTokens: new Map(parts.addedTokens.filter((token) => token.special).map(({ content, id }) => [content, id])),
    config,
    get hash() {
      return hash ??= createHash("sha256").update(parts.canonical).digest("hex");
    },
    encode: createEncoder(parts),
    ...createDecoders(tokens),
    json: () => json as TokenizerJson,
    async save(folder) {
      try {
        await Deno.mkdir(folder, { recursive: true });
        await Deno.writeTextFile(join(folder, "tokenizer.json"), JSON.stringify(json));
        await Deno.writeTextFile(join(folder, "tokenizer_config.json"), JSON.stringify(config, null, 2) + "\n");
      } catch (error) {
        throw explainIo("save the tokenizer to", folder, error);
      }
    },
  };
}
