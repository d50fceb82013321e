/** Shard files: what is written is read back, and anything else is refused. */
import assert from "node:assert/strict";
import { join } from "node:path";
import fc from "fast-check";
import { UserError } from "../../model/errors.ts";
import { ShardWriter } from "../../train/shard_writer.ts";
import {
  bytesPerToken,
  HEADER_BYTES,
  Shard,
  type ShardFormat,
  tokenArray,
  type Tokens,
  writing,
} from "../../train/shards.ts";

/** Documents with their end-of-text token first, and a format that fits them. */
const packed = fc.record({
  context: fc.integer({ min: 1, max: 9 }),
  vocabSize: fc.constantFrom(2, 300, 65536, 65537, 2 ** 31),
  documents: fc.array(fc.array(fc.nat(), { maxLength: 20 }), { minLength: 1, maxLength: 12 }),
}).map(({ context, vocabSize, documents }) => {
  const format = { context, vocabSize, endOfText: vocabSize - 1 };
  const tokens = documents.map((document) => [vocabSize - 1, ...document.map((token) => token % vocabSize)]);
  return { format, documents: tokens.map((document) => tokensOf(vocabSize, document)) };
});

function tokensOf(vocabSize: number, values: readonly number[]): Tokens {
  const tokens = tokenArray(vocabSize, values.length);
  tokens.set(values);
  return tokens;
}

function write(path: string, format: ShardFormat, documents: readonly Tokens[]): Uint8Array {
  using writer = new ShardWriter(path, format);
  for (const document of documents) writer.append(document, true);
  writer.finish();
  return Deno.readFileSync(path);
}

function inFolder(test: (path: string) => void): void {
  const folder = Deno.makeTempDirSync();
  try {
    test(join(folder, "train-00000.bin"));
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

Deno.test("what is written is read back, padded with end-of-text", () =>
  inFolder((path) =>
    fc.assert(fc.property(packed, ({ format, documents }) => {
      write(path, format, documents);
      using shard = new Shard(path);
      const flat = documents.flatMap((document) => [...document]);
      const width = format.context + 1;
      const { rows, tokens } = shard.header;
      assert.equal(rows, Math.ceil(flat.length / width));
      assert.equal(tokens, flat.length);
      assert.equal(shard.header.bytesPerToken, format.vocabSize <= 65536 ? 2 : 4);
      const read = Array.from({ length: rows }, (_, row) => [...shard.rows(row, 1)]).flat();
      assert.deepEqual(read, [...flat, ...Array(rows * width - flat.length).fill(format.endOfText)]);
      const starts = documents.map((_, index) =>
        documents.slice(0, index).reduce((sum, { length }) => sum + length, 0)
      );
      assert.deepEqual([...shard.starts], starts);
      shard.verify();
    }))
  ));

Deno.test("writing that stopped goes on from what was synced, with the same bytes", () =>
  inFolder((path) =>
    fc.assert(fc.property(packed, fc.nat(), fc.boolean(), ({ format, documents }, at, finished) => {
      const whole = write(path, format, documents);
      Deno.removeSync(path);
      const kept = documents.slice(0, 1 + at % documents.length);
      const from = { tokens: kept.reduce((sum, { length }) => sum + length, 0), documents: kept.length };
      {
        using stopped = new ShardWriter(path, format);
        for (const document of documents) stopped.append(document, true);
        if (finished) stopped.finish();
        else stopped.sync();
      }
      using writer = new ShardWriter(path, format, from);
      for (const document of documents.slice(kept.length)) writer.append(document, true);
      writer.finish();
      assert.deepEqual(Deno.readFileSync(path), whole);
      assert.deepEqual([...Deno.readDirSync(join(path, ".."))].map(({ name }) => name), ["train-00000.bin"]);
    }))
  ));

const small = { context: 3, vocabSize: 300, endOfText: 256 };
const smallDocuments = [[256, 1, 2], [256, 3], [256, 4, 5, 6, 7]].map((document) => tokensOf(300, document));

Deno.test("every truncation, and bytes that are too many, are refused", () =>
  inFolder((path) => {
    const whole = write(path, small, smallDocuments);
    for (let length = 0; length < whole.length; length++) {
      Deno.writeFileSync(path, whole.subarray(0, length));
      assert.throws(() => new Shard(path), UserError, `${length} bytes`);
    }
    Deno.writeFileSync(path, new Uint8Array([...whole, 0]));
    assert.throws(() => new Shard(path), /it has 101 bytes, its header wants 100; prepare the data again$/);
  }));

Deno.test("a changed header field is refused by name", () =>
  inFolder((path) => {
    const whole = write(path, small, smallDocuments);
    const cases: [offset: number, value: number, message: RegExp][] = [
      [0, 0, /no shard/],
      [8, 2, /version is 2, wanted 1/],
      [12, 65, /header has 65 bytes/],
      [16, 4, /tokens have 4 bytes with a vocabulary of 300/],
      [20, 0, /context is 0/],
      [20, 2, /don't fill 3 rows of 3/],
      [24, 256, /end-of-text token 256 is outside its vocabulary of 256/],
      [24, 70000, /tokens have 2 bytes/],
      [32, 2, /10 tokens don't fill 2 rows of 4/],
      [32, 0xffffffff, /don't fill/],
      [36, 0x7fffffff, /don't fill/],
      [40, 8, /8 tokens don't fill/],
      [48, 2, /has 100 bytes, its header wants 96/],
      [48, 11, /11 documents in 10 tokens/],
      [56, 1, /reserved/],
    ];
    for (const [offset, value, message] of cases) {
      const bytes = whole.slice();
      new DataView(bytes.buffer).setUint32(offset, value, true);
      Deno.writeFileSync(path, bytes);
      assert.throws(() => new Shard(path), message);
    }
  }));

Deno.test("tokens outside the vocabulary, wrong starts and wrong padding are refused", () =>
  inFolder((path) => {
    const whole = write(path, small, smallDocuments);
    const changed = (offset: number, value: number) => {
      const bytes = whole.slice();
      new DataView(bytes.buffer).setUint16(offset, value, true);
      Deno.writeFileSync(path, bytes);
      return path;
    };
    const table = HEADER_BYTES + 3 * 4 * 2;
    assert.throws(() => new Shard(changed(table + 4, 0)), /starts don't ascend/);
    assert.throws(() => new Shard(changed(table + 8, 10)), /document starts at token 10 of 10/);
    {
      using shard = new Shard(changed(HEADER_BYTES + 2 * 5, 300));
      assert.throws(() => shard.rows(0, 3), /row 1 has token 300, its vocabulary has 300/);
      assert.throws(() => shard.rows(2, 2), RangeError);
    }
    {
      using shard = new Shard(changed(HEADER_BYTES + 2 * 3, 7));
      assert.throws(() => shard.verify(), /document 1 at token 3 doesn't start with end-of-text/);
    }
    using shard = new Shard(changed(HEADER_BYTES + 2 * 11, 7));
    assert.throws(() => shard.verify(), /padding at token 11 isn't end-of-text/);
  }));

Deno.test("random changes are refused or harmless", () =>
  inFolder((path) => {
    const whole = write(path, small, smallDocuments);
    fc.assert(
      fc.property(fc.nat(whole.length - 1), fc.integer({ min: 1, max: 255 }), (at, change) => {
        const bytes = whole.slice();
        bytes[at] ^= change;
        Deno.writeFileSync(path, bytes);
        try {
          using shard = new Shard(path);
          shard.verify();
        } catch (error) {
          assert(error instanceof UserError, String(error));
        }
      }),
      { numRuns: 400 },
    );
  }));

Deno.test("a missing shard and a full disk are told in one line", () => {
  assert.throws(() => new Shard("/nowhere/train-00000.bin"), {
    name: "UserError",
    message: /^Cannot open shard \/nowhere\/train-00000.bin: No such file/,
  });
  const full = Object.assign(new Error("No space left on device (os error 28)"), { code: "ENOSPC" });
  const write = () => {
    throw full;
  };
  assert.throws(() => writing("out/x.bin", write), {
    name: "UserError",
    message: "Cannot write out/x.bin: No space left on device",
  });
  assert.equal(bytesPerToken(65536), 2);
});
