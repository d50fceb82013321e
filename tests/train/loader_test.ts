/** Batches: against a plain reading of what packing means, and as pure functions of their index. */
import assert from "node:assert/strict";
import { join } from "node:path";
import fc from "fast-check";
import { type Batch, type Loader, type LoaderOptions, openLoader } from "../../train/loader.ts";
import { MANIFEST, type Manifest, type SplitEntry } from "../../train/manifest.ts";
import { emptySplit, SplitWriter } from "../../train/prepare_output.ts";
import { tokenArray, type Tokens } from "../../train/shards.ts";
import { permutation } from "../../train/shuffle.ts";

const END = 99;
const VOCABULARY = 100;

/** Writes documents (without end-of-text) as the train and the validation split of a data folder. */
async function writeData(folder: string, documents: number[][], context: number, shardTokens = 1 << 20): Promise<void> {
  const format = { context, vocabSize: VOCABULARY, endOfText: END };
  const write = (split: "train" | "validation"): SplitEntry => {
    using writer = new SplitWriter(folder, split, format, shardTokens, emptySplit);
    for (const document of documents) {
      const tokens = tokenArray(VOCABULARY, document.length + 1);
      tokens.set([END, ...document]);
      writer.add(tokens as Tokens, document.length);
    }
    return writer.finish();
  };
  const manifest: Manifest = {
    format: "wgpt-rows",
    version: 1,
    ...format,
    tokenizer: { folder: "tokenizer", hash: "none" },
    options: { column: "text", splitOn: "file", validation: 0, seed: 0, shardTokens },
    sources: [],
    splits: { train: write("train"), validation: write("validation") },
    skipped: { files: 0, rowGroups: 0, documents: 0, reasons: [] },
  };
  await Deno.writeTextFile(join(folder, MANIFEST), JSON.stringify(manifest));
}

/** What a row gives, said as plainly as possible: targets of `null` are ignored. */
function plainRow(documents: number[][], context: number, row: number) {
  const stream = documents.flatMap((document) => [END, ...document].map((token, position) => ({ token, position })));
  const cut = stream.slice(row * (context + 1), (row + 1) * (context + 1));
  let start = 0;
  return Array.from({ length: context }, (_, at) => {
    if (cut[at]?.position === 0) start = at;
    return { token: cut[at]?.token, target: cut[at + 1]?.token ?? null, position: at - start, start };
  });
}

function checkRow(batch: Batch, at: number, wanted: ReturnType<typeof plainRow>): number {
  const offset = at * wanted.length;
  let valid = 0;
  wanted.forEach(({ token, target, position, start }, index) => {
    const n = offset + index;
    assert.equal(batch.targets[n], target ?? -100);
    if (target !== null) valid++;
    if (token === undefined) {
      assert.equal(batch.tokens[n], END);
      assert(batch.starts[n] >= offset && batch.starts[n] <= n && batch.positions[n] === n - batch.starts[n]);
      assert(wanted[batch.starts[n] - offset].token === undefined, "padding attends to padding only");
    } else {
      assert.equal(batch.tokens[n], token);
      assert.equal(batch.positions[n], position);
      assert.equal(batch.starts[n], offset + start);
    }
  });
  return valid;
}

async function inFolder(test: (folder: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await test(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

const corpora = fc.array(fc.array(fc.nat(98), { maxLength: 15 }), { minLength: 1, maxLength: 12 });

Deno.test("in order, batches are the plain reading of the packed documents", () =>
  inFolder((folder) =>
    fc.assert(
      fc.asyncProperty(
        corpora,
        fc.integer({ min: 1, max: 8 }),
        fc.integer({ min: 1, max: 5 }),
        async (documents, context, rows) => {
          await writeData(folder, documents, context, 3 * (context + 1));
          using loader = await openLoader({ data: folder, split: "validation", context, rowsPerBatch: rows });
          const length = documents.reduce((sum, document) => sum + document.length + 1, 0);
          assert.equal(loader.rows, Math.ceil(length / (context + 1)));
          assert.equal(loader.splitTokens, length);
          assert.equal(loader.batchesPerEpoch, Math.ceil(loader.rows / rows));
          for (let index = 0; index < loader.batchesPerEpoch; index++) {
            const batch = await loader.batch(index);
            let valid = 0;
            for (let row = 0; row < rows; row++) {
              valid += checkRow(batch, row, plainRow(documents, context, index * rows + row));
            }
            assert.equal(batch.validTargets, valid);
          }
        },
      ),
      { numRuns: 60 },
    )
  ));

/** Twenty rows, no padding; the first token of each is its number, so that rows can be told apart. */
const numbered = Array.from({ length: 20 }, (_, row) => [row, 50, 51]);
const numberedRows = { context: 3, rowsPerBatch: 3, split: "train" } as const;

async function rowsOf(loader: Loader, from: number, to: number): Promise<number[]> {
  const rows: number[] = [];
  for (let index = from; index < to; index++) {
    const { tokens } = await loader.batch(index);
    for (let at = 1; at < tokens.length; at += 3) rows.push(tokens[at]);
  }
  return rows;
}

async function withNumbered(
  test: (open: (options?: Partial<LoaderOptions>) => Promise<Loader>) => Promise<void>,
): Promise<void> {
  await inFolder(async (folder) => {
    await writeData(folder, numbered, 3, 7 * 4);
    await test((options) => openLoader({ data: folder, ...numberedRows, ...options }));
  });
}

Deno.test("each epoch has each row once, in another order; a batch across epochs is filled from the next", () =>
  withNumbered(async (open) => {
    using loader = await open();
    assert.equal(loader.batchesPerEpoch, 7);
    const rows = await rowsOf(loader, 0, 20);
    const all = numbered.map((_, row) => row);
    for (const epoch of [0, 1, 2]) {
      const order = rows.slice(epoch * 20, epoch * 20 + 20);
      assert.deepEqual(order.toSorted((a, b) => a - b), all);
      assert.notDeepEqual(order, all);
    }
    assert.notDeepEqual(rows.slice(0, 20), rows.slice(20, 40));
  }));

Deno.test("a batch depends on seed and index only", () =>
  withNumbered(async (open) => {
    using loader = await open({ seed: 7 });
    const first = await rowsOf(loader, 0, 20);
    using again = await open({ seed: 7 });
    for (const index of [19, 3, 11, 0]) {
      assert.deepEqual(await rowsOf(again, index, index + 1), first.slice(index * 3, index * 3 + 3));
    }
    using other = await open({ seed: 8 });
    assert.notDeepEqual(await rowsOf(other, 0, 20), first);
  }));

Deno.test("in order, what lies after the last row is ignored", () =>
  withNumbered(async (open) => {
    using loader = await open({ order: "sequential" });
    assert.deepEqual((await rowsOf(loader, 0, 6)).slice(0, 18), numbered.slice(0, 18).map(([row]) => row));
    const last = await loader.batch(6);
    assert.equal(last.validTargets, 6);
    assert.deepEqual([...last.targets.subarray(6)], [-100, -100, -100]);
    assert.deepEqual([...last.tokens.subarray(6)], [END, END, END]);
    assert.equal((await loader.batch(7)).validTargets, 0);
  }));

Deno.test("joined documents are plain causal rows", () =>
  inFolder(async (folder) => {
    await writeData(folder, [[1, 2], [3], [4, 5, 6]], 4);
    using joined = await openLoader({
      data: folder,
      split: "validation",
      context: 4,
      rowsPerBatch: 2,
      documents: "joined",
    });
    const batch = await joined.batch(0);
    assert.deepEqual([...batch.tokens], [END, 1, 2, END, END, 4, 5, 6]);
    assert.deepEqual([...batch.positions], [0, 1, 2, 3, 0, 1, 2, 3]);
    assert.deepEqual([...batch.starts], [0, 0, 0, 0, 4, 4, 4, 4]);
    assert.deepEqual([...batch.targets], [1, 2, END, 3, 4, 5, 6, -100]);
    using separate = await openLoader({ data: folder, split: "validation", context: 4, rowsPerBatch: 2 });
    const apart = await separate.batch(0);
    assert.deepEqual([...apart.positions], [0, 1, 2, 0, 0, 1, 2, 3]);
    assert.deepEqual([...apart.starts], [0, 0, 0, 3, 4, 4, 4, 4]);
    assert.equal(apart.validTargets, 7);
  }));

Deno.test("data that doesn't fit is refused with the step to take", () =>
  inFolder(async (folder) => {
    const open = (context: number) => openLoader({ data: folder, split: "train", context, rowsPerBatch: 1 });
    await assert.rejects(open(4), /has no manifest.json; make it with `deno task prepare`/);
    await writeData(folder, [[1, 2, 3], [4, 5, 6]], 4);
    await assert.rejects(open(8), /prepared with context 4, wanted 8; run `deno task prepare` with --context 8$/);
    using loader = await open(4);
    await assert.rejects(loader.batch(-1), RangeError);
    await assert.rejects(loader.batch(0.5), RangeError);
    await Deno.copyFile(join(folder, "validation-00000.bin"), join(folder, "train-00000.bin"));
    await writeData(folder, [[1, 2, 3], [4, 5, 6], [7]], 4);
    const manifest = JSON.parse(await Deno.readTextFile(join(folder, MANIFEST)));
    manifest.splits.train.shards[0].rows++;
    manifest.splits.train.rows++;
    await Deno.writeTextFile(join(folder, MANIFEST), JSON.stringify(manifest));
    using other = await open(4);
    await assert.rejects(other.batch(0), /isn't the one in the manifest; prepare the data again$/);
    await Deno.writeTextFile(join(folder, MANIFEST), "{");
    await assert.rejects(open(4), { name: "UserError" });
  }));

Deno.test("permutations are permutations and depend on seed and epoch", () => {
  fc.assert(fc.property(fc.integer({ min: 1, max: 500 }), fc.nat(), fc.nat(9), (length, seed, epoch) => {
    const order = permutation(length, seed, epoch);
    assert.deepEqual(order.toSorted(), Uint32Array.from({ length }, (_, index) => index));
    assert.deepEqual(permutation(length, seed, epoch), order);
  }));
  const places = new Float64Array(5 * 5);
  for (let seed = 0; seed < 5000; seed++) permutation(5, seed, 3).forEach((value, at) => places[at * 5 + value]++);
  const chiSquared = places.reduce((sum, seen) => sum + (seen - 1000) ** 2 / 1000, 0);
  assert(chiSquared < 40, `places are uneven: chi-squared ${chiSquared} of 16 degrees of freedom`);
});
