/** Merging words by the book, and the tables and heap that make it quick. */
import fc from "fast-check";
import assert from "node:assert/strict";
import { createBpe, createLongMerger, createShortMerger } from "../../model/bpe.ts";
import { createHeap } from "../../model/heap.ts";
import { PairTable } from "../../model/pair_table.ts";

type Merge = [number, number, number];

/** Merges over ids 0 to 3 whose results are new ids or, at times, old ones. */
const someMerges: fc.Arbitrary<Merge[]> = fc.array(fc.tuple(fc.nat(1000), fc.nat(1000), fc.nat(9)), { maxLength: 30 })
  .map((seeds) => {
    const merges = new Map<string, Merge>();
    let next = 4;
    for (const [a, b, reuse] of seeds) {
      const [left, right] = [a % next, b % next];
      if (!merges.has(`${left} ${right}`)) {
        merges.set(`${left} ${right}`, [left, right, reuse === 0 && next > 4 ? 4 + (a % (next - 4)) : next++]);
      }
    }
    return [...merges.values()];
  });

function tableOf(merges: readonly Merge[]): PairTable {
  const table = new PairTable();
  merges.forEach(([left, right, result], rank) => table.set(left, right, rank, result));
  return table;
}

/** Byte-pair encoding as its authors tell it: the most urgent merge there is, everywhere from the left, until none is left. */
function mergeByTheBook(ids: readonly number[], merges: readonly Merge[]): number[] {
  let current = [...ids];
  for (;;) {
    const first = merges.find(([left, right]) => current.some((id, i) => id === left && current[i + 1] === right));
    if (!first) return current;
    const at = current.findIndex((id, i) => id === first[0] && current[i + 1] === first[1]);
    current = [...current.slice(0, at), first[2], ...current.slice(at + 2)];
  }
}

Deno.test("short and long words are merged by the book", () => {
  fc.assert(
    fc.property(someMerges, fc.array(fc.nat(3), { maxLength: 60 }), (merges, word) => {
      const table = tableOf(merges);
      const expected = mergeByTheBook(word, merges);
      for (const merger of [createShortMerger(table), createLongMerger(table)]) {
        const ids = Int32Array.from(word);
        assert.deepEqual([...ids.subarray(0, merger(ids, ids.length))], expected);
      }
    }),
    { numRuns: 1000 },
  );
});

Deno.test("a merger's scratch memory doesn't leak from one word into the next", () => {
  const merges: Merge[] = [[0, 1, 4], [4, 4, 5], [5, 0, 6]];
  const mergers = [createShortMerger(tableOf(merges)), createLongMerger(tableOf(merges))];
  for (const length of [3, 200, 5, 90, 1, 0, 41, 40]) {
    const word = Array.from({ length }, (_, i) => i % 2);
    for (const merger of mergers) {
      const ids = Int32Array.from(word);
      assert.deepEqual([...ids.subarray(0, merger(ids, length))], mergeByTheBook(word, merges));
    }
  }
});

Deno.test("the cache of words changes no result, however many words pass through it", () => {
  const merges: Merge[] = Array.from({ length: 200 }, (_, i) => [97 + (i % 26), 97 + ((i * 7) % 26), 256 + i]);
  const rules = { byteIds: Int32Array.from({ length: 256 }, (_, byte) => byte), merges };
  const cached = createBpe(rules);
  const out = new Uint32Array(64);
  const encoder = new TextEncoder();
  const merge = createShortMerger(tableOf(merges));
  for (let round = 0; round < 2; round++) {
    for (let n = 0; n < 150_000; n += round === 0 ? 1 : 7) {
      const bytes = encoder.encode(
        n.toString(26).replace(/\d/g, (digit) => "qrstuvwxyz"[Number(digit)]).repeat(1 + n % 5),
      );
      const end = cached.encodeWord(bytes, 0, bytes.length, out, 0);
      const ids = Int32Array.from(bytes);
      const count = merge(ids, ids.length);
      if (end !== count || ids.subarray(0, count).some((id, i) => id !== out[i])) {
        assert.deepEqual([...out.subarray(0, end)], [...ids.subarray(0, count)], `word ${n}`);
      }
    }
  }
});

Deno.test("a pair table holds what a map would", () => {
  const pair = fc.tuple(fc.nat(2000), fc.nat(2000), fc.nat(1_000_000));
  fc.assert(
    fc.property(fc.array(pair, { maxLength: 3000, size: "max" }), (pairs) => {
      const table = new PairTable();
      const map = new Map<string, number>();
      for (const [left, right, value] of pairs) {
        table.set(left, right, value, value + 1);
        map.set(`${left} ${right}`, value);
      }
      assert.equal(table.size, map.size);
      for (const [left, right] of pairs) {
        const slot = table.find(left, right);
        assert.equal(table.first(slot), map.get(`${left} ${right}`));
        assert.equal(table.second(slot), map.get(`${left} ${right}`)! + 1);
      }
      assert.equal(table.find(2001, 0), -1);
    }),
    { numRuns: 20 },
  );
});

Deno.test("a heap hands out its items in order", () => {
  fc.assert(fc.property(fc.array(fc.integer()), (items) => {
    const heap = createHeap<number>((a, b) => a < b);
    items.forEach((item) => heap.push(item));
    assert.equal(heap.size, items.length);
    assert.deepEqual(items.map(() => heap.pop()), items.toSorted((a, b) => a - b));
    assert.equal(heap.pop(), undefined);
  }));
});
