/** safetensors files: what is written reads back, and nothing malformed is taken. No GPU. */

import assert from "node:assert/strict";
import { join } from "node:path";
import fc from "fast-check";
import { UserError } from "../../model/errors.ts";
import {
  fromF32,
  openSafetensors,
  type RawTensor,
  readSafetensors,
  type TensorSource,
  toF32,
  writeSafetensors,
} from "../../model/safetensors.ts";
import { DTYPE_BITS, MAX_HEADER_BYTES, type SafetensorsDType } from "../../model/safetensors_header.ts";
import { withFolder } from "./folders.ts";

/** A file of this header text (or bytes) and so many bytes of data. */
function fileOf(header: string | Uint8Array, dataBytes = 0, claimed?: bigint): Uint8Array {
  const text = typeof header === "string" ? new TextEncoder().encode(header) : header;
  const bytes = new Uint8Array(8 + text.length + dataBytes);
  new DataView(bytes.buffer).setBigUint64(0, claimed ?? BigInt(text.length), true);
  bytes.set(text, 8);
  return bytes;
}

function tensor(dtype: string, shape: string, offsets: string): string {
  return `{"dtype":"${dtype}","shape":${shape},"data_offsets":${offsets}}`;
}

const f32x2 = tensor("F32", "[2]", "[0,8]");

const malformed: [fault: string, bytes: Uint8Array, message: RegExp][] = [
  ["an empty file", new Uint8Array(0), /holds 0 bytes/],
  ["seven bytes", new Uint8Array(7), /holds 7 bytes/],
  ["header of length 0", fileOf("", 0), /header is 0 bytes/],
  ["header longer than the file", fileOf("{}", 0, 3n), /claims 3 bytes, 2 follow: the file is truncated/],
  ["header past 100 MB", fileOf("{}", 0, 100_000_001n), /claims 100000001 bytes, at most 100000000/],
  ["header length 2^64-1", fileOf("{}", 0, 2n ** 64n - 1n), /claims 18446744073709551615 bytes/],
  ["header not UTF-8", fileOf(new Uint8Array([0x7b, 0xff, 0x7d])), /not UTF-8/],
  ["byte order mark", fileOf(new Uint8Array([0xef, 0xbb, 0xbf, 0x7b, 0x7d])), /no JSON object/],
  ["space before the header", fileOf(" {}"), /no JSON object/],
  ["header an array", fileOf("[]"), /no JSON object/],
  ["header a number", fileOf("12"), /no JSON object/],
  ["unclosed object", fileOf("{"), /no valid JSON.*found the end/],
  ["trailing comma", fileOf(`{"a":${f32x2},}`, 8), /no valid JSON.*wanted a string/],
  ["text behind the object", fileOf("{}x"), /found "x".*wanted the end of the header/],
  ["a key without quotes", fileOf("{a:1}"), /wanted a string/],
  ["a broken escape", fileOf(`{"\\q":${f32x2}}`, 8), /malformed string/],
  ["a raw line break in a string", fileOf(`{"a\nb":${f32x2}}`, 8), /malformed string/],
  ["an unclosed string", fileOf(`{"a`), /malformed string/],
  ["half a surrogate pair", fileOf(`{"\\ud800":${f32x2}}`, 8), /malformed string/],
  ["two tensors of one name", fileOf(`{"a":${f32x2},"a":${f32x2}}`, 8), /"a" stands twice/],
  ["one name escaped", fileOf(`{"a":${f32x2},"\\u0061":${f32x2}}`, 8), /"a" stands twice/],
  ["two shapes", fileOf(`{"a":{"shape":[2],"shape":[2]}}`, 8), /"shape" stands twice/],
  ["two metadata", fileOf(`{"__metadata__":{},"__metadata__":{}}`), /"__metadata__" stands twice/],
  ["metadata of numbers", fileOf(`{"__metadata__":{"a":1}}`), /wanted a string/],
  ["metadata a string", fileOf(`{"__metadata__":"a"}`), /wanted {/],
  ["a tensor of null", fileOf(`{"a":null}`), /wanted {/],
  ["a tensor of nothing", fileOf(`{"a":{}}`), /"a": dtype is missing/],
  ["no shape", fileOf(`{"a":{"dtype":"F32","data_offsets":[0,8]}}`, 8), /"a": shape is missing/],
  ["no offsets", fileOf(`{"a":{"dtype":"F32","shape":[2]}}`, 8), /"a": data_offsets are missing/],
  ["an unknown field", fileOf(`{"a":{"dtypes":"F32"}}`), /unknown field "dtypes"/],
  ["an unknown dtype", fileOf(`{"a":${tensor("F31", "[2]", "[0,8]")}}`, 8), /"a": unknown dtype "F31"/],
  ["a dtype of Object", fileOf(`{"a":${tensor("toString", "[2]", "[0,8]")}}`, 8), /unknown dtype "toString"/],
  ["a shape that is a number", fileOf(`{"a":${tensor("F32", "2", "[0,8]")}}`, 8), /wanted \[/],
  ["a negative size", fileOf(`{"a":${tensor("F32", "[-2]", "[0,8]")}}`, 8), /"a": shape hold "-2"/],
  ["a fractional size", fileOf(`{"a":${tensor("F32", "[2.0]", "[0,8]")}}`, 8), /"a": shape hold "2.0"/],
  ["an exponent", fileOf(`{"a":${tensor("F32", "[2e0]", "[0,8]")}}`, 8), /"a": shape hold "2e0"/],
  ["a leading zero", fileOf(`{"a":${tensor("F32", "[02]", "[0,8]")}}`, 8), /"a": shape hold "02"/],
  ["a size as text", fileOf(`{"a":${tensor("F32", '["2"]', "[0,8]")}}`, 8), /wanted an integer/],
  ["a huge size", fileOf(`{"a":${tensor("F32", "[9007199254740992]", "[0,8]")}}`, 8), /too large/],
  ["a size of 400 digits", fileOf(`{"a":${tensor("F32", `[${"9".repeat(400)}]`, "[0,8]")}}`, 8), /too large/],
  ["an overflowing product", fileOf(`{"a":${tensor("F32", "[4294967296,4294967296]", "[0,0]")}}`), /overflows/],
  ["a product of 2^64", fileOf(`{"a":${tensor("U8", "[4294967296,4294967296,0]", "[0,0]")}}`), /overflows/],
  ["half a byte", fileOf(`{"a":${tensor("F4", "[3]", "[0,2]")}}`, 2), /no whole number of bytes/],
  ["one offset", fileOf(`{"a":${tensor("F32", "[2]", "[8]")}}`, 8), /data_offsets hold 1 numbers/],
  ["three offsets", fileOf(`{"a":${tensor("F32", "[2]", "[0,8,8]")}}`, 8), /data_offsets hold 3 numbers/],
  ["a negative offset", fileOf(`{"a":${tensor("F32", "[2]", "[-8,0]")}}`, 8), /data_offsets hold "-8"/],
  ["reversed offsets", fileOf(`{"a":${tensor("F32", "[2]", "[8,0]")}}`, 8), /\[8, 0\] are reversed/],
  ["offsets of another size", fileOf(`{"a":${tensor("F32", "[2]", "[0,4]")}}`, 4), /takes 8 bytes.*give 4/],
  ["data cut short", fileOf(`{"a":${f32x2}}`, 7), /end at byte 8, but 7 bytes.*truncated/],
  ["a huge offset", fileOf(`{"a":${tensor("U8", "[999999999999]", "[0,999999999999]")}}`, 8), /truncated/],
  ["a hole at the start", fileOf(`{"a":${tensor("F32", "[1]", "[4,8]")}}`, 8), /bytes 0 to 4 .* no tensor/],
  [
    "a hole between",
    fileOf(`{"a":${f32x2},"b":${tensor("F32", "[1]", "[12,16]")}}`, 16),
    /bytes 8 to 12 .* no tensor \(before tensor "b"\)/,
  ],
  ["an overlap", fileOf(`{"a":${f32x2},"b":${tensor("F32", "[1]", "[4,8]")}}`, 8), /"a" and "b" overlap at byte 4/],
  ["the same place twice", fileOf(`{"a":${f32x2},"b":${f32x2}}`, 8), /"a" and "b" overlap at byte 0/],
  ["trailing bytes", fileOf(`{"a":${f32x2}}`, 9), /1 bytes after the last tensor/],
  ["data of no tensor", fileOf("{}", 4), /4 bytes after the last tensor/],
];

Deno.test("safetensors: every malformed file is refused with its name and the fault", async () => {
  await withFolder(async (folder) => {
    const path = join(folder, "faulty.safetensors");
    for (const [fault, bytes, message] of malformed) {
      await Deno.writeFile(path, bytes);
      await assert.rejects(readSafetensors(path), (error: Error) => {
        assert(error instanceof UserError, `${fault}: ${error.stack}`);
        assert(error.message.startsWith(`Cannot read ${path}: `), error.message);
        assert(!error.message.includes("\n"), fault);
        assert.match(error.message, message, fault);
        return true;
      }, fault);
    }
  });
});

Deno.test("safetensors: a missing file and a folder are refused by name", async () => {
  await withFolder(async (folder) => {
    await assert.rejects(readSafetensors(join(folder, "none")), {
      name: "UserError",
      message: /^Cannot read .*none: No such file/,
    });
    await assert.rejects(readSafetensors(folder), { name: "UserError", message: /it is no file$/ });
  });
});

Deno.test("safetensors: unusual but well-formed headers are taken", async () => {
  await withFolder(async (folder) => {
    const path = join(folder, "a.safetensors");
    const header = ` { "b" : ${tensor("F32", "[ ]", "[0 , 4]")} ,\t"" : ${tensor("I64", "[3,0]", "[0,0]")},\r\n` +
      `"__metadata__": {"__proto__": "x", "\\u00e9\\n": ""}, "__proto__": ${tensor("F6_E2M3", "[4]", "[4,7]")} }  `;
    await Deno.writeFile(path, fileOf(header.trimStart(), 7));
    using file = await openSafetensors(path);
    assert.deepEqual([...file.tensors.keys()], ["", "b", "__proto__"]);
    assert.deepEqual(Object.entries(file.metadata), [["__proto__", "x"], ["é\n", ""]]);
    assert.equal((await file.read("")).length, 0);
    assert.equal((await file.read("__proto__")).length, 3);
  });
});

const dtypes = Object.keys(DTYPE_BITS) as SafetensorsDType[];
const rawTensor = fc.tuple(fc.constantFrom(...dtypes), fc.array(fc.integer({ min: 0, max: 7 }), { maxLength: 4 }))
  .filter(([dtype, shape]) => shape.reduce((a, b) => a * b, DTYPE_BITS[dtype]) % 8 === 0)
  .chain(([dtype, shape]) => {
    const length = shape.reduce((a, b) => a * b, DTYPE_BITS[dtype]) / 8;
    return fc.uint8Array({ minLength: length, maxLength: length }).map((data): RawTensor => ({ dtype, shape, data }));
  });
const name = fc.string({ unit: "grapheme", maxLength: 12 }).filter((text) => text !== "__metadata__");
const tensorMap = fc.uniqueArray(fc.tuple(name, rawTensor), { selector: ([key]) => key, maxLength: 6 });

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

Deno.test("safetensors: a header's word alone allocates nothing", async () => {
  await withFolder(async (folder) => {
    const path = join(folder, "a.safetensors");
    const before = Deno.memoryUsage().rss;
    const claims = [
      fileOf("{}", 0, BigInt(MAX_HEADER_BYTES)),
      fileOf(`{"a":${tensor("F32", "[250000000]", "[0,1000000000]")}}`, 8),
      fileOf(`{"a":${"[".repeat(1_000_000)}`, 8),
      fileOf(`{"a":`.repeat(200_000)),
    ];
    for (const bytes of claims) {
      await Deno.writeFile(path, bytes);
      await assert.rejects(readSafetensors(path), UserError);
    }
    assert(Deno.memoryUsage().rss - before < 64e6);
  });
});

Deno.test("safetensors: a sparse 4 GB file is opened, and rows past 2^32 bytes are read, without reading the rest", async () => {
  await withFolder(async (folder) => {
    const path = join(folder, "a.safetensors");
    const rows = 2 ** 30 + 8; // of (1) f32
    const bytes = fileOf(`{"a":${tensor("F32", `[${rows},1]`, `[0,${4 * rows}]`)}}`);
    {
      using file = await Deno.open(path, { write: true, create: true });
      await file.write(bytes);
      await file.seek(bytes.length + 4 * (rows - 1), Deno.SeekMode.Start);
      await file.write(new Uint8Array(new Float32Array([42]).buffer));
    }
    using file = await openSafetensors(path);
    assert.deepEqual(await file.readF32("a", [rows - 2, rows]), new Float32Array([0, 42]));
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

Deno.test("float formats: every f16 and bf16 value goes to f32 and back", () => {
  const halves = Uint16Array.from({ length: 65536 }, (_, i) => i);
  const data = new Uint8Array(halves.buffer);
  for (const dtype of ["F16", "BF16"] as const) {
    const values = toF32({ dtype, data });
    const back = new Uint16Array(fromF32(values, dtype).buffer);
    values.forEach((value, i) => {
      if (Number.isNaN(value)) {
        assert(Number.isNaN(toF32({ dtype, data: new Uint8Array(back.slice(i, i + 1).buffer) })[0]));
      } else assert.equal(back[i], halves[i]);
    });
  }
});

Deno.test("float formats: rounding goes to the nearest value, ties to even", () => {
  for (const [dtype, bits] of [["F16", 11], ["BF16", 8]] as const) {
    const step = 2 ** (1 - bits); // between 1 and the next value
    const round = (x: number) => toF32({ dtype, data: fromF32(new Float32Array([x]), dtype) })[0];
    assert.equal(round(1 + step / 2), 1);
    assert.equal(round(1 + step * 1.5), 1 + 2 * step);
    assert.equal(round(1 + step / 2 + 2 ** -23), 1 + step);
    assert.equal(round(1 + step * 1.5 - 2 ** -23), 1 + step);
    assert.equal(round(-1 - step / 2), -1);
    assert.equal(round(3.39e38), dtype === "F16" ? Infinity : 2 ** 127 * (2 - 2 ** -7));
    assert.equal(round(3.4028234e38), Infinity);
    assert(Object.is(round(-0), -0));
  }
  const property = fc.property(fc.float({ noNaN: true, noDefaultInfinity: true }), (x) => {
    const kept = toF32({ dtype: "BF16", data: fromF32(new Float32Array([x]), "BF16") })[0];
    assert(Math.abs(kept - x) <= Math.max(Math.abs(x) * 2 ** -8, 2 ** -134) || !Number.isFinite(kept));
  });
  fc.assert(property);
});

Deno.test("float formats: unaligned bytes, F64 and other dtypes", () => {
  const bytes = new Uint8Array(13);
  bytes.set(new Uint8Array(new Float32Array([1.5, -2]).buffer), 1);
  assert.deepEqual(toF32({ dtype: "F32", data: bytes.subarray(1, 9) }), new Float32Array([1.5, -2]));
  const f64 = new Uint8Array(new Float64Array([0.1, 1e300]).buffer);
  assert.deepEqual(toF32({ dtype: "F64", data: f64 }), new Float32Array([0.1, Infinity]));
  assert.throws(() => toF32({ dtype: "I64", data: f64 }), /Cannot read I64 as f32/);
  assert.throws(() => toF32({ dtype: "F32", data: bytes }), /Cannot read 13 bytes as numbers of 4 bytes/);
});
