/** How fast text becomes tokens, with gpt-tokenizer on the same text in turn. It knows no adapter. */

import { clearMergeCache, encode as gptTokenizerEncode } from "gpt-tokenizer/encoding/r50k_base";
import { loadTokenizer, trainTokenizer } from "../model/tokenizer.ts";
import { type Bench, type BenchOptions, compare, contender, type Peer, type Result, select } from "./harness.ts";
import { addressFiles } from "./texts.ts";

const REPEATS = 5;

interface Case {
  readonly name: string;
  readonly text: string;
  readonly ours: () => unknown;
  readonly theirs?: () => unknown;
}

function peerOf(work: () => unknown): Peer {
  return { name: "gpt-tokenizer", open: () => Promise.resolve(contender("gpt-tokenizer", work)) };
}

async function cases(): Promise<Case[]> {
  const texts = addressFiles();
  const english = texts.join("\n");
  const scattered = (i: number) => Math.imul(Math.imul(i + 1, 0x9e3779b1) >>> 7, 0x2c1b3c6d) >>> 8;
  const han = (i: number) => i % 20 === 19 ? "。" : String.fromCharCode(0x4e00 + scattered(i) % 5000);
  const chinese = Array.from({ length: 300_000 }, (_, i) => han(i)).join("");
  const word = Array.from({ length: 16_000 }, (_, i) => String.fromCharCode(97 + scattered(i) % 26)).join("");
  const gpt2 = await loadTokenizer("gpt2");
  const ids = gpt2.encode(english);
  const encoding = (name: string, text: string): Case => ({
    name,
    text,
    ours: () => gpt2.encode(text),
    theirs() {
      clearMergeCache(); // it keeps words of any length
      gptTokenizerEncode(text);
    },
  });
  return [
    encoding("English", english),
    encoding("a word of 16,000 letters", word),
    encoding("Chinese characters in sentences of 19", chinese),
    { name: "decoding English", text: english, ours: () => gpt2.decode(ids) },
    { name: "training 4,096 tokens", text: english, ours: () => trainTokenizer(texts, { vocabSize: 4096 }) },
  ];
}

/** Encoding, decoding and training on the State of the Union addresses (10.7 MB), and one word of 16,000 letters. */
export async function benchTokenizer({ repeats = REPEATS, progress, ...options }: BenchOptions): Promise<Bench> {
  const results: Result[] = [];
  for (const { name, text, ours, theirs } of select(await cases(), options.case)) {
    const peers = theirs ? [peerOf(theirs)] : [];
    const amount = { bytes: new TextEncoder().encode(text).length };
    const measured = await compare({ name, amount, ours: contender("wgpt", ours), peers, repeats, progress });
    results.push(...measured.results);
  }
  return { name: "tokenizer", config: { tokenizer: "gpt2", repeats }, results };
}
