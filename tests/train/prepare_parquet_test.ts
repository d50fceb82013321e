/** prepare over Parquet: every codec and writer, and files that are broken. */
import assert from "node:assert/strict";
import { join } from "node:path";
import {
  documentsOf,
  inFolder,
  parquet,
  type ParquetOptions,
  plainParquet,
  prepareBytes,
  writeFiles,
} from "./prepared.ts";

/** Texts that compress a little, repeat, are empty and are missing. */
const texts = Array.from({ length: 100 }, (_, index) => {
  if (index % 17 === 3) return null;
  if (index % 17 === 5) return "";
  return index % 5 === 0 ? "repeated" : `döcument ${index}: ${"word ".repeat(index * 31 % 50)}`;
});
const kept = texts.filter((text) => text !== null && text !== "");

/** A page header whose definition levels are said to have a senseless length, on which hyparquet 1.31 loops for ever. */
function endless(): Uint8Array {
  const bytes = parquet(texts, { codec: "UNCOMPRESSED", version: "V2", rowGroup: 50, dictionary: false });
  assert.deepEqual([...bytes.subarray(53, 55)], [0x15, 14], "the field with the length");
  bytes[54] = 185;
  return bytes;
}

const writers: ParquetOptions[] = [
  { codec: "UNCOMPRESSED" },
  { codec: "SNAPPY" },
  { codec: "GZIP" },
  { codec: "BROTLI" },
  { codec: "ZSTD" },
  { codec: "LZ4_RAW" },
  { codec: "SNAPPY", version: "V2", dictionary: false },
  { codec: "BROTLI", version: "V2" },
  { codec: "ZSTD", version: "V2", dictionary: false },
];

Deno.test("every codec, page version and encoding gives the same documents, whatever the row groups", () =>
  inFolder(async (folder) => {
    const files: Record<string, Uint8Array> = { "00-own.parquet": plainParquet(texts) };
    writers.forEach((writer, index) => {
      files[`${10 + index}-${writer.codec}.parquet`] = parquet(texts, { ...writer, rowGroup: 13 + index * 20 });
    });
    await writeFiles(join(folder, "in"), files);
    const out = join(folder, "out");
    const manifest = await prepareBytes(out, join(folder, "in"), { workers: 2 });
    assert.equal(manifest.sources.length, writers.length + 1);
    const documents = documentsOf(out, manifest);
    manifest.sources.forEach(({ path }, index) => {
      assert.deepEqual(documents.slice(index * kept.length, (index + 1) * kept.length), kept, path);
    });
  }));

Deno.test("an unknown column, one without text, and what is no Parquet are told with the file", () =>
  inFolder(async (folder) => {
    const whole = parquet(texts);
    await writeFiles(folder, {
      "good.parquet": whole,
      "short.parquet": "PAR1",
      "text.parquet": "this is plain text and no Parquet file",
      "cut.parquet": whole.subarray(0, whole.length - 100),
    });
    const cases: [name: string, column: string, message: RegExp][] = [
      ["good", "body", /good\.parquet: it has no column body, only id, text; choose one with --column; or go on/],
      ["good", "id", /its column id holds no text but INT32/],
      ["short", "text", /short\.parquet: it is corrupt: it is too short/],
      ["text", "text", /text\.parquet: it is corrupt: parquet file invalid/],
      ["cut", "text", /cut\.parquet: it is corrupt/],
    ];
    const path = (name: string) => join(folder, `${name}.parquet`);
    for (const [name, column, message] of cases) {
      await assert.rejects(prepareBytes(join(folder, "out"), path(name), { column }), { name: "UserError", message });
    }
    const all = ["short", "good", "text", "cut"].map(path);
    const manifest = await prepareBytes(join(folder, "out"), all, { skipBad: true });
    assert.deepEqual(documentsOf(join(folder, "out"), manifest), kept);
    assert.equal(manifest.skipped.files, 3);
    assert.equal(manifest.skipped.reasons.length, 3);
  }));

Deno.test("a corrupt row group is told by number; what came before stands, and --skip-bad goes on from it", () =>
  inFolder(async (folder) => {
    const bytes = parquet(texts, { codec: "ZSTD", rowGroup: 10 });
    // The fourth row group's frames begin after three others' two columns; break it in the middle.
    const frames: number[] = [];
    for (let at = 0; at < bytes.length - 4; at++) {
      if (bytes[at] === 0x28 && bytes[at + 1] === 0xb5 && bytes[at + 2] === 0x2f && bytes[at + 3] === 0xfd) {
        frames.push(at);
      }
    }
    bytes.fill(0xa5, frames[Math.floor(frames.length * 0.37)], frames[Math.floor(frames.length * 0.37)] + 40);
    const path = join(folder, "in.parquet");
    await Deno.writeFile(path, bytes);
    const out = join(folder, "out");
    let group = -1;
    await assert.rejects(prepareBytes(out, path, { checkpointSeconds: 0 }), (error: Error) => {
      const match =
        /in\.parquet, row group (\d+): it is corrupt: .*; repair or remove it, or go on without it with --skip-bad$/
          .exec(error.message);
      group = Number(match?.[1]);
      return error.name === "UserError";
    });
    assert(group > 1 && group < 6, `row group ${group}`);
    const state = JSON.parse(await Deno.readTextFile(join(out, "progress.json")));
    const before = texts.slice(0, group * 10).filter((text) => text !== null && text !== "");
    assert.equal(state.pieces, group);
    assert.equal(state.splits.train.documents, before.length);
    const manifest = await prepareBytes(out, path, { skipBad: true });
    const after = texts.slice(group * 10 + 10).filter((text) => text !== null && text !== "");
    assert.deepEqual(documentsOf(out, manifest), [...before, ...after]);
    assert.deepEqual([manifest.skipped.rowGroups, manifest.skipped.reasons.length], [1, 1]);
  }));

Deno.test("text that is no UTF-8 is told by row, or skipped", () =>
  inFolder(async (folder) => {
    const path = join(folder, "in.parquet");
    const bytes = texts.slice(20, 30).map((text) => text === null ? null : new TextEncoder().encode(text));
    bytes[6] = Uint8Array.of(104, 105, 0xff);
    await Deno.writeFile(path, plainParquet(bytes, 4));
    const message = /in\.parquet, row group 1: row 6: it is no valid UTF-8 at byte 2; repair/;
    await assert.rejects(prepareBytes(join(folder, "a"), path), { name: "UserError", message });
    const manifest = await prepareBytes(join(folder, "b"), path, { skipBad: true });
    const wanted = texts.slice(20, 30).filter((text, index) => text !== null && text !== "" && index !== 6);
    assert.deepEqual(documentsOf(join(folder, "b"), manifest), wanted);
    assert.equal(manifest.skipped.documents, 1);
  }));

Deno.test("random damage never ends in a crash or in rows that can't be read", () =>
  inFolder(async (folder) => {
    const whole = [
      parquet(texts, { codec: "SNAPPY", rowGroup: 25 }),
      parquet(texts, { codec: "ZSTD", version: "V2", rowGroup: 50 }),
    ];
    let random = 12345;
    const next = (below: number) => (random = Math.imul(random, 1103515245) + 12345 >>> 0) % below;
    const files: Record<string, Uint8Array> = {};
    for (let index = 0; index < 60; index++) {
      const bytes = whole[index % 2].slice();
      for (let change = 0; change < 3; change++) bytes[next(bytes.length)] = next(256);
      files[`${String(index).padStart(2, "0")}.parquet`] = bytes;
    }
    await writeFiles(join(folder, "in"), files);
    const options = { skipBad: true, workers: 2, decodeSeconds: 3 };
    const manifest = await prepareBytes(join(folder, "out"), join(folder, "in"), options);
    const { files: badFiles, rowGroups, documents } = manifest.skipped;
    assert(badFiles + rowGroups + documents > 10, JSON.stringify(manifest.skipped));
    documentsOf(join(folder, "out"), manifest);
  }));

Deno.test("a page that can't be decoded in finite time is corrupt, and the others are prepared", () =>
  inFolder(async (folder) => {
    await writeFiles(folder, { "in/a.parquet": endless(), "in/b.parquet": parquet(["after"]) });
    const options = { decodeSeconds: 1 };
    const message = /a\.parquet, row group 0: it is corrupt: decoding it takes more than 1 s; repair/;
    await assert.rejects(prepareBytes(join(folder, "a"), join(folder, "in"), options), { name: "UserError", message });
    const manifest = await prepareBytes(join(folder, "b"), join(folder, "in"), { ...options, skipBad: true });
    const rest = texts.slice(50).filter((text) => text !== null && text !== "");
    assert.deepEqual(documentsOf(join(folder, "b"), manifest), [...rest, "after"]);
    assert.equal(manifest.skipped.rowGroups, 1);
    assert.match(manifest.sources[0].hash, /^sha256:[0-9a-f]{64}$/);
  }));
