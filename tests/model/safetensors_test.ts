/** safetensors files: what is written reads back, whole and by rows; a failed write harms nothing. No GPU. */

import assert from "node:assert/strict";
import { join } from "node:path";
import { parseSafetensorsMetadata } from "@huggingface/hub";
import fc from "fast-check";
import { UserError } from "../../model/errors.ts";
import {
  openSafetensors,
  type RawTensor,
  readSafetensors,
  type TensorSource,
  toF32,
  writeSafetensors,
} from "../../model/safetensors.ts";
import { DTYPE_BITS, type SafetensorsDType } from "../../model/safetensors_header.ts";
import { withFolder } from "./folders.ts";

const dtypes = Object.keys(DTYPE_BITS) as SafetensorsDType[];
const rawTensor = fc.tuple(fc.constantFrom(...dtypes), fc.array(fc.integer({ min: 0, max: 7 }), { maxLength: 4 }))
  .filter(([dtype, shape]) => shape.reduce((a, b) => a * b, DTYPE_BITS[dtype]) % 8 === 0)
  .chain(([dtype, shape]) => {
    const length = shape.reduce((a, b) => a * b, DTYPE_BITS[dtype]) / 8;
    return fc.uint8Array({ minLength: length, maxLength: length }).map((data): RawTensor => ({ dtype, shape, data }));
  });
const name = fc.string({ unit: "grapheme", maxLength: 12 }).filter((text) => text !== "__metadata__");
const tensorMap = fc.uniqueArray(fc.tuple(name, rawTensor), { selector: ([key]) => key, maxLength: 6 });

Deno.test("safetensors: a missing file and a folder are refused by name", async () => {
  await withFolder(async (folder) => {
    await assert.rejects(readSafetensors(join(folder, "none")), {
      name: "UserError",
      message: /^Cannot read .*none: No such file/,
    });
    await assert.rejects(readSafetensors(folder), { name: "UserError", message: /it is no file$/ });
  });
});

Deno.test("safetensors: what is written reads back, byte for byte, whatever the order", async () => {
  await withFolder(async (folder) => {
    const path = join(folder, "a.safetensors");
    const metadata = fc.dictionary(fc.string({ unit: "grapheme" }), fc.string({ unit: "grapheme" }), { maxKeys: 3 });
    await fc.assert(
      fc.asyncProperty(tensorMap, metadata, async (tensors, metadata) => {
        await writeSafetensors(path, tensors, metadata);
        const bytes = await Deno.readFile(path);
        const read = await readSafetensors(path);
        assert.deepEqual(new Map([...read].sort()), new Map([...tensors].sort()));
        using file = await openSafetensors(path);
        assert.deepEqual({ ...file.metadata }, { ...metadata });
        assert.equal(new DataView(bytes.buffer).getUint32(0, true) % 8, 0);
        await writeSafetensors(path, new Map([...tensors].reverse()), metadata);
        assert.deepEqual(await Deno.readFile(path), bytes);
      }),
      { numRuns: 100 },
    );
  });
});

Deno.test("safetensors: Hugging Face's client reads the same header from a written file", async () => {
  await withFolder(async (folder) => {
    const path = join(folder, "model.safetensors");
    const tensors: [string, RawTensor][] = [
      ["h.0.é", { dtype: "BF16", shape: [3, 5], data: new Uint8Array(30) }],
      ["wte", { dtype: "F32", shape: [2, 1], data: new Uint8Array(8) }],
      ["empty", { dtype: "I64", shape: [0], data: new Uint8Array(0) }],
    ];
    await writeSafetensors(path, tensors, { format: "pt" });
    const bytes = await Deno.readFile(path);
    const serve = (_: unknown, init?: RequestInit) => {
      const [from, to] = new Headers(init?.headers).get("range")!.slice("bytes=".length).split("-").map(Number);
      const headers = { "content-range": `bytes ${from}-${to}/${bytes.length}`, etag: '"1"' };
      return Promise.resolve(new Response(bytes.slice(from, to + 1), { status: 206, headers }));
    };
    const repo = { type: "model", name: "a/b" } as const;
    const parsed = await parseSafetensorsMetadata({ repo, path: "model.safetensors", fetch: serve as typeof fetch });
    assert(!parsed.sharded);
    const { __metadata__, ...header } = parsed.header as Record<string, { data_offsets: [number, number] }>;
    assert.deepEqual(__metadata__, { format: "pt" });
    using file = await openSafetensors(path);
    const ours = [...file.tensors].map((
      [name, { begin, end, ...type }],
    ) => [name, { ...type, data_offsets: [begin, end] }]);
    assert.deepEqual(header, Object.fromEntries(ours));
    assert.deepEqual(Object.keys(header).sort(), ["empty", "h.0.é", "wte"]);
  });
});

Deno.test("safetensors: corrupted bytes give an error with the file's name or a valid map", async () => {
  await withFolder(async (folder) => {
    const path = join(folder, "a.safetensors");
    let refused = 0;
    const edit = fc.record({ at: fc.nat(), byte: fc.integer({ min: 0, max: 255 }) });
    const edits = fc.array(edit, { minLength: 1, maxLength: 4 });
    await fc.assert(
      fc.asyncProperty(tensorMap, edits, fc.option(fc.nat()), async (tensors, edits, cut) => {
        await writeSafetensors(path, tensors, { format: "pt" });
        const bytes = await Deno.readFile(path);
        const reach = 8 + Number(new DataView(bytes.buffer).getBigUint64(0, true)); // faults of data can't be seen
        for (const { at, byte } of edits) bytes[at % reach] = byte;
        await Deno.writeFile(path, cut === null ? bytes : bytes.subarray(0, cut % bytes.length));
        try {
          for (const { dtype, shape, data } of (await readSafetensors(path)).values()) {
            assert.equal(shape.reduce((a, b) => a * b, DTYPE_BITS[dtype]), 8 * data.length);
          }
        } catch (error) {
          refused++;
          assert(error instanceof UserError && error.message.startsWith(`Cannot read ${path}: `), String(error));
        }
      }),
      { numRuns: 400 },
    );
    assert(refused > 200, `only ${refused} of 400 corrupted files were refused`);
  });
});

Deno.test("safetensors: rows are read by themselves, and reads may overlap in time", async () => {
  await withFolder(async (folder) => {
    const path = join(folder, "a.safetensors");
    const data = Float32Array.from({ length: 60 }, (_, i) => i);
    const f4 = { dtype: "F4", shape: [2, 3], data: new Uint8Array(3) };
    await writeSafetensors(path, { a: { dtype: "F32", shape: [5, 3, 4], data }, f4 });
    using file = await openSafetensors(path);
    const parts = await Promise.all([3, 0, 4, 2, 1].map((row) => file.readF32("a", [row, row + 1])));
    assert.deepEqual(parts.map((part) => part[0]), [36, 0, 48, 24, 12]);
    assert.deepEqual(await file.readF32("a", [1, 3]), data.slice(12, 36));
    assert.equal((await file.read("a", [5, 5])).length, 0);
    for (const rows of [[-1, 2], [2, 1], [0, 6], [0.5, 1]] as const) {
      assert.throws(() => file.read("a", rows), { name: "RangeError", message: /Cannot read rows .* "a": it has 5/ });
    }
    assert.throws(() => file.read("f4", [0, 1]), { name: "RangeError", message: /whole bytes/ });
    assert.throws(() => file.read("b"), { name: "RangeError", message: /"b".*it holds none/ });
    await assert.rejects(file.readF32("f4"), { name: "RangeError", message: /Cannot read F4 as f32/ });
    await Deno.truncate(path, 100);
    await assert.rejects(file.read("a"), { name: "UserError", message: /became shorter/ });
    await assert.rejects(file.read("a"), UserError, "one failed read doesn't bar the next");
  });
});

Deno.test("safetensors: data come from producers, one at a time, whole or in pieces", async () => {
  await withFolder(async (folder) => {
    const path = join(folder, "a.safetensors");
    const order: string[] = [];
    const data = new Float32Array([1, 2, 3]);
    await writeSafetensors(path, [
      ["b", { dtype: "F32", shape: [3], data: () => (order.push("b"), data) }],
      ["a", { dtype: "F32", shape: [3], data: () => (order.push("a"), Promise.resolve(data)) }],
      ["c", {
        dtype: "F32",
        shape: [3],
        data: async function* () {
          order.push("c");
          yield data.subarray(0, 1);
          yield await Promise.resolve(data.subarray(1));
        },
      }],
    ]);
    assert.deepEqual(order, ["a", "b", "c"]);
    for (const tensor of (await readSafetensors(path)).values()) assert.deepEqual(toF32(tensor), data);
  });
});

Deno.test("safetensors: a failed write leaves the old file and nothing beside it", async () => {
  await withFolder(async (folder) => {
    const path = join(folder, "a.safetensors");
    await writeSafetensors(path, { a: { dtype: "U8", shape: [1], data: new Uint8Array([7]) } });
    const bad: [Record<string, TensorSource>, RegExp][] = [
      [{ a: { dtype: "F32", shape: [2], data: new Uint8Array(7) } }, /"a": its data take 7 bytes, wanted 8/],
      [{ a: { dtype: "F32", shape: [2], data: new Uint8Array(9) } }, /9 or more bytes, wanted 8/],
      [{ a: { dtype: "F31", shape: [2], data: new Uint8Array(8) } }, /unknown dtype "F31"/],
      [{ a: { dtype: "F32", shape: [-2], data: new Uint8Array(8) } }, /its shape is \(-2\)/],
      [{ a: { dtype: "F32", shape: [2 ** 40, 2 ** 40], data: new Uint8Array(8) } }, /its shape is/],
      [{ __metadata__: { dtype: "U8", shape: [0], data: new Uint8Array(0) } }, /reserved/],
      [{ a: { dtype: "U8", shape: [1], data: () => Promise.reject(new RangeError("no data")) } }, /no data/],
    ];
    for (const [tensors, message] of bad) {
      await assert.rejects(writeSafetensors(path, tensors), {
        name: "RangeError",
        message,
      });
    }
    assert.deepEqual([...Deno.readDirSync(folder)].map(({ name }) => name), ["a.safetensors"]);
    assert.deepEqual((await readSafetensors(path)).get("a")?.data, new Uint8Array([7]));
    await assert.rejects(writeSafetensors(join(folder, "none", "a"), {}), {
      name: "UserError",
      message: /^Cannot write .*none\/a: No such file/,
    });
  });
});
