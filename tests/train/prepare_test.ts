/** prepare over text and JSON lines: packing, splits, order, what is refused. */
import assert from "node:assert/strict";
import { join } from "node:path";
import fc from "fast-check";
import { loadTokenizer } from "../../model/tokenizer.ts";
import { prepareCommand } from "../../train/prepare_command.ts";
import { contentOf, documentsOf, END, inFolder, prepareBytes, tokensOf, writeFiles } from "./prepared.ts";

const utf8 = (text: string) => new TextEncoder().encode(text);

Deno.test("documents of a folder are packed end-of-text first, in the order of their paths", () =>
  inFolder(async (folder) => {
    await writeFiles(folder, {
      "in/b.txt": "second\n",
      "in/a/z.txt": "first",
      "in/c.jsonl": '{"text":"third","other":1}\r\n\n{"other":2,"text":"föürth"}',
      "in/.hidden.txt": "no",
      "in/notes.md": "no",
      "in/empty.txt": "",
    });
    const out = join(folder, "out");
    const manifest = await prepareBytes(out, join(folder, "in"));
    assert.deepEqual(documentsOf(out, manifest), ["first", "second\n", "third", "föürth"]);
    const bytes = utf8("firstsecond\nthirdföürth").length;
    const { splits, sources } = manifest;
    const rows = Math.ceil((bytes + 4) / 8);
    const { shards: [shard], ...counts } = splits.train;
    assert.deepEqual(counts, { documents: 4, tokens: bytes + 4, textBytes: bytes, rows });
    assert.equal(shard.file, "train-00000.bin");
    assert.deepEqual(splits.validation, { documents: 0, tokens: 0, textBytes: 0, rows: 0, shards: [] });
    assert.deepEqual(sources.map(({ path }) => path.slice(folder.length)), [
      "/in/a/z.txt",
      "/in/b.txt",
      "/in/c.jsonl",
      "/in/empty.txt",
    ]);
    assert.equal(sources[0].hash, "sha256:a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e");
    assert.deepEqual([...contentOf(out).keys()], [
      "manifest.json",
      "tokenizer/tokenizer.json",
      "tokenizer/tokenizer_config.json",
      "train-00000.bin",
    ]);
    assert.equal((await loadTokenizer(join(out, "tokenizer"))).hash, manifest.tokenizer.hash);
  }));

Deno.test("text splits at empty lines or at a text, and byte order marks go", () =>
  inFolder(async (folder) => {
    const path = join(folder, "in.txt");
    const split = async (text: string, splitOn: string, out: string) => {
      await Deno.writeTextFile(path, text);
      return documentsOf(join(folder, out), await prepareBytes(join(folder, out), path, { splitOn }));
    };
    assert.deepEqual(await split("\ufeffone\ntwo\n\n\n\nthree\r\n\r\nfour\n", "blank-line", "a"), [
      "one\ntwo",
      "three",
      "four",
    ]);
    const ends = "one\n<|endoftext|>\n\ntwo <|endoftex|> <|endoftext|><|endoftext|>three";
    assert.deepEqual(await split(ends, "<|endoftext|>", "b"), ["one", "two <|endoftex|> ", "three"]);
    assert.deepEqual(await split("\ufeff one\n\n<|endoftext|>\ntwo\n", "file", "c"), [" one\n\n<|endoftext|>\ntwo\n"]);
  }));

const lines = fc.array(fc.constantFrom("", "a", "bc", "déf", "\r", "<", "<|", "<|x|>", "long line of text"), {
  maxLength: 30,
});

Deno.test("where a Worker's share ends doesn't matter", () =>
  inFolder(async (folder) => {
    const path = join(folder, "in.txt");
    let run = 0;
    const documents = async (text: string, splitOn: string, pieceBytes: number) => {
      await Deno.writeTextFile(path, text);
      const out = join(folder, String(run++));
      return documentsOf(out, await prepareBytes(out, path, { splitOn, pieceBytes }));
    };
    await fc.assert(
      fc.asyncProperty(
        lines,
        fc.constantFrom("blank-line", "<|x|>"),
        fc.integer({ min: 1, max: 9 }),
        async (some, splitOn, pieceBytes) => {
          const text = ["start", ...some].join("\n");
          const separator = splitOn === "blank-line" ? /\r*\n\r*\n[\r\n]*/ : splitOn;
          const plain = text.split(separator).map((part) => part.replace(/^[\r\n]+|[\r\n]+$/g, "")).filter((part) =>
            part !== ""
          );
          assert.deepEqual(await documents(text, splitOn, pieceBytes), plain);
        },
      ),
      { numRuns: 12 },
    );
  }));

Deno.test("the same bytes come out for any number of Workers", () =>
  inFolder(async (folder) => {
    const line = (index: number) => JSON.stringify({ text: `${index} `.repeat(1 + index * 7919 % 97) });
    await writeFiles(folder, {
      "in/a.jsonl": Array.from({ length: 300 }, (_, index) => line(index)).join("\n"),
      "in/b.txt": "text of its own",
    });
    const made = async (name: string, workers: number) => {
      const out = join(folder, name);
      await prepareBytes(out, join(folder, "in"), { workers, pieceBytes: 1000, validation: 0.2, shardTokens: 5000 });
      return contentOf(out);
    };
    const one = await made("one", 1);
    assert(one.size > 8, "several shards");
    assert.deepEqual(await made("three", 3), one);
  }));

Deno.test("a held-out split is a seeded choice of whole documents", () =>
  inFolder(async (folder) => {
    const path = join(folder, "in.jsonl");
    const texts = Array.from({ length: 500 }, (_, index) => `document ${index}`);
    await Deno.writeTextFile(path, texts.map((text) => JSON.stringify({ body: text })).join("\n"));
    const options = { column: "body", validation: 0.1 };
    const held = async (name: string, seed: number) => {
      const out = join(folder, name);
      const manifest = await prepareBytes(out, path, { ...options, seed });
      const [train, validation] = [documentsOf(out, manifest), documentsOf(out, manifest, "validation")];
      assert.deepEqual([...train, ...validation].sort(), texts.toSorted());
      assert.deepEqual(validation, texts.filter((text) => validation.includes(text)));
      return validation;
    };
    const first = await held("a", 1);
    assert(first.length > 25 && first.length < 75, `${first.length} of 500 held out`);
    assert.notDeepEqual(await held("b", 2), first);
  }));

Deno.test("a large vocabulary takes four bytes a token", () =>
  inFolder(async (folder) => {
    const bytes = await loadTokenizer("bytes");
    const json = bytes.json();
    const known = json.added_tokens as readonly { readonly id: number; readonly content: string }[];
    const added = { ...known[0], id: 70000, content: "<|far|>" };
    await writeFiles(folder, {
      "big/tokenizer.json": JSON.stringify({ ...json, added_tokens: [...known, added] }),
      "in.txt": "text",
    });
    const out = join(folder, "out");
    const manifest = await prepareBytes(out, join(folder, "in.txt"), { tokenizer: join(folder, "big") });
    assert.equal(manifest.vocabSize, 70001);
    assert.equal(manifest.splits.train.shards[0].bytes, 64 + 8 * 4 + 4);
    assert.deepEqual(tokensOf(out, manifest), [END, ...utf8("text")]);
  }));

Deno.test("what is wrong with text and JSON lines is told with its place, or skipped and counted", () =>
  inFolder(async (folder) => {
    const bad = Uint8Array.from([...utf8("good é "), 0xc3, 0x28]);
    const cases: [name: string, content: string | Uint8Array, message: RegExp][] = [
      ["a.txt", bad, /a\.txt: it is no valid UTF-8 at byte 9; repair or remove it/],
      ["b.txt", Uint8Array.from([0xff, 0xfe, 104, 0]), /looks like UTF-16; convert it with iconv/],
      ["c.jsonl", '{"text":"ok"}\n{"text":', /c\.jsonl: line at byte 14: .*JSON/],
      [
        "d.jsonl",
        '{"title":"x","body":"y"}',
        /line at byte 0: it has no column text, only title, body; choose one with --column/,
      ],
      ["e.jsonl", '{"text":5}', /line at byte 0: its text is no text/],
      ["f.jsonl", '{"text":"\\ud800"}', /half a surrogate pair/],
      ["g.jsonl", "[1]", /it is no JSON object/],
      ["h.jsonl", bad, /line at byte 0: it is no valid UTF-8 at byte 9/],
    ];
    for (const [name, content, message] of cases) {
      await writeFiles(folder, { [`in/${name}`]: content });
      await assert.rejects(prepareBytes(join(folder, name), join(folder, "in", name)), { name: "UserError", message });
    }
    await writeFiles(folder, { "in/i.jsonl": '{"text":"kept"}\n{"text":null}\n{"text":""}' });
    const out = join(folder, "out");
    const manifest = await prepareBytes(out, join(folder, "in"), { skipBad: true });
    assert.deepEqual(documentsOf(out, manifest), ["ok", "kept"]);
    assert.equal(manifest.skipped.documents, cases.length);
    assert.equal(manifest.skipped.reasons.length, cases.length);
    assert.match(manifest.skipped.reasons[2], /c\.jsonl: line at byte 14/);
  }));

Deno.test("inputs and folders that can't be used are refused in one line", () =>
  inFolder(async (folder) => {
    await writeFiles(folder, { "in.txt": "text", "in.dat": "text", "full/other": "mine", "none/x.dat": "" });
    const at = (name: string) => join(folder, name);
    const cases: [input: string, out: string, message: RegExp][] = [
      ["missing.txt", "out", /Cannot find .*missing\.txt: no such file or folder/],
      ["in.dat", "out", /Cannot tell the format of .*in\.dat by its name: give --format/],
      ["none", "out", /no file ends in \.txt/],
      ["in.txt", "full", /it holds other; choose an empty folder/],
      ["in.txt", "in.dat/out", /^Cannot write .*in\.dat\/out: Not a directory/],
    ];
    for (const [input, out, message] of cases) {
      await assert.rejects(prepareBytes(at(out), at(input)), { name: "UserError", message });
    }
    assert.deepEqual([...Deno.readDirSync(at("full"))].map(({ name }) => name), ["other"]);
    const noEnd = { ...(await loadTokenizer("bytes")), endOfText: undefined };
    await assert.rejects(prepareBytes(at("out"), at("in.txt"), { tokenizer: noEnd }), /no end-of-text token/);
    await assert.rejects(prepareBytes(at("out"), at("none"), { format: "text" }), /the input holds no document/);
  }));

Deno.test("the command refuses wrong flags in one line with exit code 2", async () => {
  const cases: [args: string[], message: RegExp][] = [
    [[], /^Give --tokenizer/],
    [["--tokenizr", "gpt2"], /^Unknown flag --tokenizr: did you mean --tokenizer/],
    [["--context"], /^--context/],
    [["stray.txt", "--tokenizer", "bytes"], /^Unexpected argument stray.txt: name files after --input/],
    [
      ["--input", "x.txt", "--tokenizer", "bytes", "--context", "many", "--out", "o"],
      /^--context: found "many", wanted a whole number/,
    ],
    [
      ["--input", "x.txt", "--tokenizer", "bytes", "--context", "1.5", "--out", "o"],
      /^--context: found 1.5, wanted a whole number/,
    ],
    [["--input", "x.txt", "--tokenizer", "bytes", "--context", "8"], /^Give --out/],
    [["--tokenizer", "bytes", "--context", "8", "--out", "o"], /^Give what to prepare with --input/],
    [
      ["--input", "x.txt", "--tokenizer", "bytes", "--context", "8", "--out", "o", "--validation", "2"],
      /^--validation: found 2, wanted a number from 0 to 1/,
    ],
    [
      ["--input", "x.txt", "--tokenizer", "bytes", "--context", "8", "--out", "o", "--format", "csv"],
      /^--format: found "csv", wanted auto, text, jsonl or parquet/,
    ],
    [["--input", "x.txt", "--tokenizer", "bytes", "--context", "8", "--out", "o", "--skip-bad=yes"], /skip-bad/],
  ];
  for (const [args, message] of cases) {
    await assert.rejects(prepareCommand(args), (error: Error & { exitCode?: number }) => {
      assert.match(error.message, message);
      assert(!error.message.includes("\n"));
      return error.name === "UserError" && error.exitCode === 2;
    });
  }
});
