/** OpenAI's GPT-2 vocabulary (Radford et al. 2019), made from the ranks of its tokens. It encodes nothing. */

import { createShortMerger } from "./bpe.ts";
import { tokenOfBytes } from "./byte_level.ts";
import { PairTable } from "./pair_table.ts";

/** Tokens as written in a vocabulary, by id, and the merges, most urgent first. */
export interface Vocabulary {
  readonly tokens: readonly string[];
  readonly merges: readonly (readonly [string, string])[];
}

/**
 * The merge behind each token: what its bytes become under the merges of all tokens before it must be two tokens.
 * @param ranks the bytes of every token, by id; the single bytes come first
 */
function vocabularyOfRanks(ranks: readonly Uint8Array[]): Vocabulary {
  const tokens = ranks.map(tokenOfBytes);
  const byteIds = new Int32Array(256).fill(-1);
  const table = new PairTable(ranks.length);
  const applyMerges = createShortMerger(table);
  const merges: [string, string][] = [];
  ranks.forEach((bytes, id) => {
    if (bytes.length === 1) {
      byteIds[bytes[0]] = id;
      return;
    }
    const ids = Int32Array.from(bytes, (byte) => byteIds[byte]);
    const count = applyMerges(ids, ids.length);
    if (count !== 2) throw new Error(`Cannot derive a merge for token ${id}: its bytes make ${count} tokens, not 2`);
    table.set(ids[0], ids[1], merges.length, id);
    merges.push([tokens[ids[0]], tokens[ids[1]]]);
  });
  return { tokens, merges };
}

/** 50,256 tokens and 50,000 merges: all but the end of text, whose id is 50256. Takes about a third of a second. */
export async function gpt2Vocabulary(): Promise<Vocabulary> {
  const { default: ranks } = await import("gpt-tokenizer/bpeRanks/r50k_base");
  const encoder = new TextEncoder();
  return vocabularyOfRanks(
    ranks.map((token) => typeof token === "string" ? encoder.encode(token) : Uint8Array.from(token)),
  );
}
