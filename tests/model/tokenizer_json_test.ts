/** tokenizer.json in its many forms, against the tokenizers library. */
import fc from "fast-check";
import assert from "node:assert/strict";
import { createTokenizer, loadTokenizer, trainTokenizer } from "../../model/tokenizer.ts";
import { oraclesFor, scripts, unicodeText } from "./tokenizer_oracles.ts";

const trained = trainTokenizer([scripts], { vocabSize: 900 }).json();
const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false };
const sequence = (...pretokenizers: unknown[]) => ({ type: "Sequence", pretokenizers });
const split = (pattern: unknown, behavior: string, invert = false) => ({ type: "Split", pattern, behavior, invert });

const flagsOff = { single_word: false, lstrip: false, rstrip: false, normalized: false };

type Json = Readonly<Record<string, unknown>>;

async function assertEqualIds(json: Json, texts: fc.Arbitrary<string> = unicodeText, numRuns = 150): Promise<void> {
  const tokenizer = createTokenizer(json);
  const oracles = oraclesFor(json);
  const check = async (text: string) =>
    assert.deepEqual([...tokenizer.encode(text, { allowSpecial: true })], await oracles.native(text));
  await check(scripts);
  await fc.assert(fc.asyncProperty(texts, check), { numRuns });
}

Deno.test("pre-tokenizers divide text as the tokenizers library does", async (t) => {
  const llama =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" +
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
  const kinds: Record<string, unknown> = {
    "a space before the text": { ...byteLevel, add_prefix_space: true, use_regex: true },
    "a space and no pattern": { ...byteLevel, add_prefix_space: true },
    "no pattern": byteLevel,
    "one in a sequence": sequence({ ...byteLevel, use_regex: true }),
    "the pattern of Llama 3": sequence(split({ Regex: llama }, "Isolated"), byteLevel),
    "classes of Unicode": sequence(split({ Regex: "\\w+|\\W\\d|[\\w\\s]\\-|\\S\\D\\'" }, "Isolated"), byteLevel),
    "a literal, then the pattern": sequence(split({ String: "e." }, "Isolated"), { ...byteLevel, use_regex: true }),
    "digits one by one": sequence({ type: "Digits", individual_digits: true }, { ...byteLevel, use_regex: true }),
    "digits together": sequence({ type: "Digits", individual_digits: false }, byteLevel),
    "digits with spaces": sequence({ type: "Digits", individual_digits: true }, {
      ...byteLevel,
      add_prefix_space: true,
    }),
  };
  for (const behavior of ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]) {
    kinds[behavior] = sequence(split({ Regex: "[aeiou ]" }, behavior), byteLevel);
    kinds[`${behavior}, inverted`] = sequence(split({ Regex: "[a-z]" }, behavior, true), byteLevel);
  }
  for (const [name, pre_tokenizer] of Object.entries(kinds)) {
    await t.step(name, () => assertEqualIds({ ...trained, pre_tokenizer }));
  }
});

Deno.test("added tokens are found as the tokenizers library finds them", async (t) => {
  const token = (id: number, content: string, flags: Json = {}) => ({
    ...{ id, content, special: true, ...flagsOff },
    ...flags,
  });
  const parts = [
    "<a>",
    "<ab>",
    "<b>",
    "b>",
    "word",
    "é",
    "e\u0301",
    "e",
    " ",
    "\n",
    "\u3000",
    "x",
    "<",
    "!",
    "_",
    "<|endoftext|>",
  ];
  const texts = fc.array(fc.constantFrom(...parts), { maxLength: 12 }).map((chosen) => chosen.join(""));
  const kinds: Record<string, readonly Json[]> = {
    "plain": [token(900, "<a>"), token(901, "<ab>"), token(902, "b>"), token(903, "<a"), token(904, "<")],
    "not special": [token(900, "<a>", { special: false }), token(901, "<ab>"), token(902, "a", { special: false })],
    "with the space on the left": [token(900, "<a>", { lstrip: true }), token(901, "word", { lstrip: true })],
    "with the space on the right": [token(900, "<a>", { rstrip: true }), token(901, "word", { rstrip: true })],
    "with the space on both": [token(900, "<a>", { rstrip: true, lstrip: true }), token(901, "<b>", { lstrip: true })],
    "single words": [token(900, "word", { single_word: true }), token(901, "né", { single_word: true })],
    "normalized": [
      token(900, "né", { normalized: true, special: false }),
      token(901, "<a>"),
      token(902, "a>", { normalized: true }),
    ],
    "decomposed": [token(900, "ne\u0301", { normalized: true, special: false }), token(901, "\u0301")],
  };
  for (const [name, added_tokens] of Object.entries(kinds)) {
    await t.step(name, () => assertEqualIds({ ...trained, added_tokens }, texts, 400));
    await t.step(
      `${name}, with NFC`,
      () => assertEqualIds({ ...trained, added_tokens, normalizer: { type: "NFC" } }, texts, 400),
    );
  }
});

Deno.test("added tokens that are not special are found in any text, special ones where they are allowed", () => {
  const added_tokens = [{ id: 900, content: "<plain>" }, { id: 901, content: "<special>", special: true }];
  const tokenizer = createTokenizer({ ...trained, added_tokens });
  const text = "<plain><special>";
  assert.deepEqual([...tokenizer.encode(text, { allowSpecial: true })], [900, 901]);
  assert.equal(tokenizer.encode(text)[0], 900);
  assert.ok(!tokenizer.encode(text).includes(901));
  assert.equal(tokenizer.decode(tokenizer.encode(text)), text);
  assert.equal(tokenizer.decode([900, 901]), text);
  assert.equal(tokenizer.vocabSize, 902);
});

/** The compatibility and canonical forms of these characters are newer than that library's Unicode. */
const newerForms =
  /[\u32ff\ua7f2-\ua7f4\uab69\u{105c9}-\u{105e4}\u{10781}-\u{107ba}\u{11383}-\u{113c8}\u{11938}\u{16121}-\u{16128}\u{16d68}-\u{16d6a}\u{1ccd6}-\u{1ccf9}\u{1e030}-\u{1e06d}\u{1f16c}\u{1fbf0}-\u{1fbf9}]/u;
const olderText = unicodeText.filter((text) => !newerForms.test(text));

Deno.test("an added token whose text is a byte's character leaves that byte as it is", async () => {
  const id = (trained.model.vocab as Record<string, number>)["é"];
  const json = { ...trained, added_tokens: [{ id, content: "é", special: false, ...flagsOff }] };
  assert.deepEqual([...createTokenizer(json).bytes(id)], [0xe9]);
  assert.equal(createTokenizer(json).decode([id]), await oraclesFor(json).nativeDecode([id]));
});

Deno.test("normalizers change text as the tokenizers library does", async (t) => {
  const kinds = ["NFC", "NFD", "NFKC", "NFKD"].map((type) => ({ type }));
  for (const normalizer of [...kinds, { type: "Sequence", normalizers: [kinds[1], kinds[0]] }]) {
    await t.step(normalizer.type, () => assertEqualIds({ ...trained, normalizer }, olderText));
  }
});

Deno.test("models in less common forms encode as in the tokenizers library", async (t) => {
  const { model } = trained;
  const vocab = model.vocab as Record<string, number>;
  const without = (...tokens: string[]) => ({
    ...model,
    vocab: Object.fromEntries(Object.entries(vocab).filter(([token]) => !tokens.includes(token))),
    merges: (model.merges as string[]).filter((merge) => !tokens.some((token) => merge.includes(token))),
  });
  await t.step(
    "whole words before merges",
    () =>
      assertEqualIds({
        ...trained,
        model: { ...model, ignore_merges: true, merges: (model.merges as string[]).slice(0, 40) },
      }),
  );
  await t.step("bytes that are missing", () => assertEqualIds({ ...trained, model: without("e", "Ñ", "Ġ") }));
  await t.step(
    "an unknown token",
    () => assertEqualIds({ ...trained, model: { ...without("e", "Ñ", "Ġ"), unk_token: "<|endoftext|>" } }),
  );
  await t.step(
    "unknown tokens together",
    () =>
      assertEqualIds({ ...trained, model: { ...without("e", "Ñ", "Ġ"), unk_token: "<|endoftext|>", fuse_unk: true } }),
  );
  await t.step("no type", () => {
    const { type: _, ...untyped } = model;
    const tokenizer = createTokenizer({ ...trained, model: untyped });
    assert.deepEqual(tokenizer.encode(scripts), createTokenizer(trained).encode(scripts));
  });
  await t.step("a token named __proto__", () => {
    const text = JSON.stringify(trained).replace('"vocab":{', '"vocab":{"__proto__":900,');
    assert.equal(createTokenizer(JSON.parse(text)).decode([900]), "__proto__");
  });
});

Deno.test("the hash tells tokenizers apart that give other ids", async () => {
  const { pre_tokenizer, model } = trained;
  const hashes = [
    trained,
    { ...trained, added_tokens: [] },
    { ...trained, pre_tokenizer: { ...pre_tokenizer as Json, add_prefix_space: true } },
    { ...trained, normalizer: { type: "NFC" } },
    { ...trained, model: { ...model, ignore_merges: true } },
    { ...trained, model: { ...model, merges: (model.merges as string[]).toReversed() } },
    (await loadTokenizer("gpt2")).json(),
  ].map((json) => createTokenizer(json).hash);
  assert.equal(new Set(hashes).size, hashes.length);
  const { trim_offsets: _, ...less } = pre_tokenizer as Record<string, unknown>;
  assert.equal(
    createTokenizer({ ...trained, pre_tokenizer: less, post_processor: null, version: "2.0" }).hash,
    hashes[0],
  );
  assert.match(hashes[0], /^[0-9a-f]{64}$/);
});
