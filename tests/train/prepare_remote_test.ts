/** prepare from URLs and from the Hub, against a server on this machine. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { SHA, standIn } from "./hub_server.ts";
import { contentOf, documentsOf, inFolder, parquet, prepareBytes, writeFiles } from "./prepared.ts";

const utf8 = (text: string) => new TextEncoder().encode(text);
const texts = Array.from({ length: 60 }, (_, index) => `text ${index} ${"word ".repeat(index)}`);
const files = {
  "README.md": utf8("# data"),
  "data/train-0.parquet": parquet(texts.slice(0, 40), { codec: "ZSTD", rowGroup: 15 }),
  "data/train-1.parquet": parquet(texts.slice(40), { codec: "SNAPPY" }),
  "data/validation-0.parquet": parquet(["held out"]),
  "lines/a.jsonl": utf8('{"text":"one"}\n{"text":"two"}'),
  "odd/part one.json": utf8('{"text":"odd"}'),
};

Deno.test("files at URLs are read by range, and give what the same files give on disk", () =>
  inFolder(async (folder) => {
    await using server = standIn({ files, failEvery: 4 });
    const names = ["data/train-0.parquet", "data/train-1.parquet", "lines/a.jsonl"] as const;
    const urls = names.map((name) => `${server.url}/${name}?download=true`);
    const manifest = await prepareBytes(join(folder, "far"), urls, { workers: 2, pieceBytes: 5 });
    await writeFiles(folder, files);
    const near = await prepareBytes(join(folder, "near"), names.map((name) => join(folder, name)), { pieceBytes: 5 });
    assert.deepEqual(documentsOf(join(folder, "far"), manifest), [...texts, "one", "two"]);
    assert.deepEqual(manifest.splits, near.splits);
    assert.deepEqual(manifest.sources.map(({ hash }) => hash), Array(3).fill('"same"'));
    assert(server.requests.every((request) => / bytes=\d+-\d+$/.test(request)), "ranges only");
  }));

Deno.test("what a server can't give is told in one line", () =>
  inFolder(async (folder) => {
    const refused = async (options: Parameters<typeof standIn>[0], name: string, message: RegExp) => {
      await using server = standIn(options);
      await assert.rejects(prepareBytes(join(folder, "out"), `${server.url}/${name}`), { name: "UserError", message });
    };
    await refused({ files }, "missing.txt", /missing\.txt: the server answers 404$/);
    await refused(
      { files, noRanges: true },
      "lines/a.jsonl",
      /by ranges: its server sends it whole; download it and give its path$/,
    );
    await refused({ files, unstable: true }, "lines/a.jsonl", /it changed from "\d" to "\d" meanwhile$/);
    await refused({ files: { "a.txt": new Uint8Array(0) } }, "a.txt", /the input holds no document/);
  }));

Deno.test("a dataset's files for training are listed page by page, its revision pinned", () =>
  inFolder(async (folder) => {
    await using server = standIn({ files, page: 2, failEvery: 5 });
    const options = { hubUrl: `${server.url}/`, workers: 2 };
    const manifest = await prepareBytes(join(folder, "a"), "hf:owner/data@v1/data", options);
    assert.deepEqual(documentsOf(join(folder, "a"), manifest), texts);
    assert.deepEqual(
      manifest.sources.map(({ path }) => path),
      [0, 1].map((n) => `hf:owner/data@${SHA}/data/train-${n}.parquet`),
    );
    const one = await prepareBytes(join(folder, "b"), "hf:owner/data/odd/part one.json", options);
    assert.deepEqual(documentsOf(join(folder, "b"), one), ["odd"]);
    const again = await prepareBytes(join(folder, "a"), `hf:owner/data@${SHA}/data`, options);
    assert.deepEqual(again, manifest);
  }));

Deno.test("a configuration says which files are meant", () =>
  inFolder(async (folder) => {
    const configs = [
      {
        config_name: "small",
        data_files: [{ split: "test", path: "data/v*" }, { split: "train", path: "./data/train-0.*" }],
      },
      { config_name: "all", data_files: ["data/**", "lines/*.jsonl"] },
      { config_name: "text", data_files: "odd/part ?ne.json", default: true },
    ];
    await using server = standIn({ files, cardData: { configs } });
    const documents = async (input: string, out: string) => {
      const manifest = await prepareBytes(join(folder, out), input, { hubUrl: server.url });
      return documentsOf(join(folder, out), manifest);
    };
    assert.deepEqual(await documents("hf:owner/data/small", "a"), texts.slice(0, 40));
    assert.deepEqual(await documents("hf:owner/data/all", "b"), [...texts, "held out", "one", "two"]);
    assert.deepEqual(await documents("hf:owner/data", "c"), ["odd"]);
    await assert.rejects(
      documents("hf:owner/data/large", "d"),
      /Cannot find large in hf:owner\/data\/large: .*configurations: small, all, text$/,
    );
  }));

Deno.test("the token opens what is private, and a refusal says which to set", () =>
  inFolder(async (folder) => {
    await using server = standIn({ files, token: "hf_secret" });
    const input = "hf:owner/data/lines";
    const from = (accessToken?: string) =>
      prepareBytes(join(folder, "out"), input, { hubUrl: server.url, accessToken });
    await assert.rejects(
      from(),
      /^UserError: Cannot read hf:owner\/data\/lines: Repository not found.*; set HF_TOKEN to a token that may read it$/,
    );
    await assert.rejects(from("secret"), /must start with 'hf_'/);
    const manifest = await from("hf_secret");
    assert.deepEqual(documentsOf(join(folder, "out"), manifest), ["one", "two"]);
    const written = [...contentOf(join(folder, "out")).values()].join("");
    assert(!written.includes("hf_secret"), "the token isn't kept");
    await assert.rejects(prepareBytes(join(folder, "x"), "hf:data", { hubUrl: server.url }), /write hf:owner\/dataset/);
    await assert.rejects(
      prepareBytes(join(folder, "x"), "hf:owner/data@v9", { hubUrl: server.url, accessToken: "hf_secret" }),
      /Invalid rev id.*check the name/,
    );
  }));
