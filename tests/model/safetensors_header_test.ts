/** The header of a safetensors file: nothing malformed is taken, and nothing allocated on its word alone. No GPU. */

import assert from "node:assert/strict";
import { join } from "node:path";
import { UserError } from "../../model/errors.ts";
import { openSafetensors, readSafetensors } from "../../model/safetensors.ts";
import { MAX_HEADER_BYTES } from "../../model/safetensors_header.ts";
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
