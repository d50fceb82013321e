/** Training a tokenizer: the merges of counting everything anew, and of the tokenizers library. */
import fc from "fast-check";
import assert from "node:assert/strict";
import native from "tokenizers";
import { bytesInAlphabetOrder, tokenOfBytes } from "../../model/byte_level.ts";
import { gpt2Pattern } from "../../model/gpt2_words.ts";
import { loadTokenizer, trainTokenizer } from "../../model/tokenizer.ts";
import { assertAgrees, oraclesFor, scripts, unicodeText, withoutAddedTokens } from "./tokenizer_oracles.ts";

interface Model {
  readonly vocab: Record<string, number>;
  readonly merges: (string | [string, string])[];
}

function modelOf(json: Readonly<Record<string, unknown>>): Model {
  return json.model as Model;
}

/** Counts every pair of the whole corpus anew for each merge. */
function slowMerges(texts: readonly string[], size: number): string[] {
  const tokens = bytesInAlphabetOrder.map((byte) => tokenOfBytes([byte]));
  const words = texts.flatMap((text) => text.match(gpt2Pattern) ?? [])
    .map((word) => [...new TextEncoder().encode(word)].map((byte) => bytesInAlphabetOrder.indexOf(byte)));
  const merges: string[] = [];
  while (tokens.length < size) {
    const counts = new Map<string, number>();
    for (const word of words) {
      for (let i = 0; i + 1 < word.length; i++) {
        counts.set(`${word[i]} ${word[i + 1]}`, (counts.get(`${word[i]} ${word[i + 1]}`) ?? 0) + 1);
      }
    }
    const pairs = [...counts].map(([pair, count]) => ({ pair: pair.split(" ").map(Number), count }));
    pairs.sort((a, b) => b.count - a.count || a.pair[0] - b.pair[0] || a.pair[1] - b.pair[1]);
    if (pairs.length === 0) break;
    const [left, right] = pairs[0].pair;
    const token = tokens[left] + tokens[right];
    assert.ok(!tokens.includes(token));
    tokens.push(token);
    merges.push(`${tokens[left]} ${tokens[right]}`);
    for (const word of words) {
      for (let i = 0; i + 1 < word.length; i++) {
        if (word[i] === left && word[i + 1] === right) word.splice(i, 2, tokens.indexOf(token));
      }
    }
  }
  return merges;
}

Deno.test("training merges what counting everything anew would", () => {
  const corpus = fc.array(
    fc.oneof(
      fc.string({ unit: fc.constantFrom("a", "b", "-", " ", "é"), maxLength: 30 }),
      fc.constantFrom("aaaaaaa", "-------------------", "--- ----- --", "the theme of the thesis", "banana bandana"),
    ),
    { minLength: 1, maxLength: 8 },
  );
  fc.assert(
    fc.property(corpus, fc.integer({ min: 257, max: 300 }), (texts, vocabSize) => {
      const tokenizer = trainTokenizer(texts, { vocabSize });
      assert.deepEqual(modelOf(tokenizer.json()).merges, slowMerges(texts, vocabSize - 1));
    }),
    { numRuns: 300 },
  );
});

Deno.test("training gives the merges of the tokenizers library", async () => {
  const folder = await Deno.makeTempDir();
  const json = trainTokenizer([], { vocabSize: 257 }).json();
  const theirs = native.Tokenizer.fromString(
    JSON.stringify({ ...withoutAddedTokens(json), model: { ...json.model, vocab: {}, merges: [] } }),
  );
  await Deno.writeTextFile(`${folder}/text`, scripts);
  theirs.train([`${folder}/text`]);
  theirs.save(`${folder}/trained.json`);
  const trained = modelOf(JSON.parse(await Deno.readTextFile(`${folder}/trained.json`)));
  const lines = scripts.match(/[^\n]*\n/g)!; // that library trains line by line
  const ours = modelOf(trainTokenizer(lines, { vocabSize: 1500 }).json()).merges;
  assert.equal(ours.length, 1243);
  assert.deepEqual(ours, trained.merges.slice(0, ours.length).map((merge) => [merge].flat().join(" ")));
  await Deno.remove(folder, { recursive: true });
});

Deno.test("a trained tokenizer has every byte, its merges, and the end of text with the last id", () => {
  const tokenizer = trainTokenizer([scripts], { vocabSize: 600 });
  assert.equal(tokenizer.vocabSize, 600);
  assert.equal(tokenizer.endOfText, 599);
  assert.equal(tokenizer.decode([599]), "<|endoftext|>");
  assert.deepEqual([...tokenizer.encode("<|endoftext|>", { allowSpecial: true })], [599]);
  assert.ok(tokenizer.encode("<|endoftext|>").length > 1);
  const bytes = Array.from({ length: 256 }, (_, id) => tokenizer.bytes(id)[0]);
  assert.deepEqual(bytes, [...bytesInAlphabetOrder]);
});

Deno.test("a trained tokenizer is the same each time, and too small a text gives fewer tokens", () => {
  const train = () => trainTokenizer(scripts.match(/.{1,500}/gs)!, { vocabSize: 900 });
  assert.equal(train().hash, train().hash);
  assert.equal(trainTokenizer(["abc abc"], { vocabSize: 5000 }).vocabSize, 256 + 3 + 1);
  assert.throws(() => trainTokenizer(["abc"], { vocabSize: 256 }), /Cannot train a tokenizer of 256 tokens/);
});

Deno.test("a trained tokenizer, saved, is loaded by both libraries, which agree with it on any text", async () => {
  const folder = await Deno.makeTempDir();
  const trained = trainTokenizer([scripts], { vocabSize: 1500 });
  await trained.save(folder);
  const loaded = await loadTokenizer(folder);
  assert.equal(loaded.hash, trained.hash);
  const json = JSON.parse(await Deno.readTextFile(`${folder}/tokenizer.json`));
  const config = JSON.parse(await Deno.readTextFile(`${folder}/tokenizer_config.json`));
  const oracles = oraclesFor(withoutAddedTokens(json), config);
  await assertAgrees(loaded, oracles, scripts);
  await fc.assert(fc.asyncProperty(unicodeText, (text) => assertAgrees(loaded, oracles, text)), { numRuns: 300 });

  const special = oraclesFor(json, config);
  const text = "One.<|endoftext|>Two <|endoftext|>\n<|endoftext|><|endoftext";
  const ids = [...loaded.encode(text, { allowSpecial: true })];
  assert.deepEqual(ids, await special.native(text));
  assert.deepEqual(ids, special.js(text));
  await Deno.remove(folder, { recursive: true });
});

Deno.test("training tells how far it is", () => {
  const seen: string[] = [];
  trainTokenizer(["abab", "ab"], { vocabSize: 258, onProgress: (p) => seen.push(`${p.phase} ${p.done} ${p.total}`) });
  assert.deepEqual(seen, ["counting words 4 undefined", "counting words 6 undefined", "merging 258 258"]);
});
