/** Other tokenizers to agree with, and the texts to agree on. It knows nothing of how ours works. */

import { Tokenizer as JsTokenizer } from "@huggingface/tokenizers";
import fc from "fast-check";
import assert from "node:assert/strict";
import native from "tokenizers";
import type { Tokenizer } from "../../model/tokenizer.ts";

export const scripts: string = Deno.readTextFileSync(new URL("../fixtures/scripts.txt", import.meta.url));

type Json = Readonly<Record<string, unknown>>;

export interface Oracles {
  /** Ids by the `tokenizers` library: the truth. */
  native(text: string): Promise<number[]>;
  nativeDecode(ids: number[]): Promise<string>;
  /** Ids by `@huggingface/tokenizers`, whose \s is JavaScript's: U+0085 no space, U+FEFF one. */
  js(text: string): number[];
}

/** Both oracles for one tokenizer.json. They always take the text of added tokens for those tokens. */
export function oraclesFor(json: Json, config: Json = {}): Oracles {
  const first = native.Tokenizer.fromString(JSON.stringify(json));
  const second = new JsTokenizer(json, { clean_up_tokenization_spaces: false, ...config });
  return {
    native: async (text) => (await first.encode(text, null, { addSpecialTokens: false })).getIds(),
    nativeDecode: (ids) => first.decode(ids, false),
    js: (text) => second.encode(text, { add_special_tokens: false }).ids as number[],
  };
}

/** The tokenizer.json without its added tokens: what the oracles make of text in which none is sought. */
export function withoutAddedTokens(json: Json): Json {
  return { ...json, added_tokens: [] };
}

export async function assertAgrees(tokenizer: Tokenizer, oracles: Oracles, text: string): Promise<void> {
  const ids = Array.from(tokenizer.encode(text));
  assert.deepEqual(ids, await oracles.native(text));
  if (!/[\u0085\ufeff]/.test(text)) assert.deepEqual(ids, oracles.js(text));
  assert.equal(tokenizer.decode(ids), text);
}

const telling = [
  " ",
  "  ",
  "\n",
  "\t",
  "\u00a0",
  "\u3000",
  "\u0085",
  "\ufeff",
  "'",
  "'s",
  "'re",
  "'LL",
  "ſ",
  "a",
  "the",
  "7",
  "½",
  "!",
  "é",
  "e\u0301",
];

/** Random Unicode text (no lone surrogates), rich in what divides words. */
export const unicodeText: fc.Arbitrary<string> = fc.oneof(
  fc.string({ unit: "binary", maxLength: 40 }),
  fc.string({ unit: "grapheme", maxLength: 40 }),
  fc.array(fc.oneof(fc.constantFrom(...telling), fc.string({ unit: "grapheme", minLength: 1, maxLength: 2 })), {
    maxLength: 40,
  })
    .map((parts) => parts.join("")),
);
