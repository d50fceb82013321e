/** Byte-pair encoding of one word: which merges apply, in which order (Sennrich et al. 2016). It knows no text and no files. */

import { createHeap } from "./heap.ts";
import { PairTable } from "./pair_table.ts";

/** Up to this many bytes the quadratic loop is faster than the heap (measured at 24 to 64 on x86-64). */
const SHORT_WORD = 40;
const CACHE_SLOTS = 1 << 16;
const CACHE_BYTES = 32;
const CACHE_IDS = 8;
const NO_MERGE = 0x7fffffff;

/** How the model of a tokenizer encodes words. */
export interface BpeRules {
  /** The id of every byte; -1 where the vocabulary lacks it. */
  readonly byteIds: Int32Array;
  /** The merges, most urgent first: left id, right id, id of the result. */
  readonly merges: readonly (readonly [number, number, number])[];
  /** Stands for a byte the vocabulary lacks; undefined drops such bytes. */
  readonly unknown?: number;
  /** One unknown id for a whole run of such bytes. */
  readonly fuseUnknown?: boolean;
  /** A word that is a token as it stands is taken whole, whatever the merges say. */
  readonly wholeWords?: ReadonlyMap<string, number>;
}

export interface Bpe {
  /** Writes the ids of bytes[from..to) to out[at..] and returns the end; out must have room for to - from ids more. */
  encodeWord(bytes: Uint8Array, from: number, to: number, out: Uint32Array, at: number): number;
}

/** The text of bytes as a key: one character a byte. */
export function byteKey(bytes: Uint8Array, from = 0, to = bytes.length): string {
  let key = "";
  for (let i = from; i < to; i++) key += String.fromCharCode(bytes[i]);
  return key;
}

/** The merges of a table, applied to `count` ids in place: the most urgent pair first, of equals the leftmost. Returns the new count. */
export type ApplyMerges = (ids: Int32Array, count: number) => number;

/** The specification, and the faster one for short words: finds the most urgent pair anew each time. O(count²). */
export function createShortMerger(table: PairTable): ApplyMerges {
  let slots = new Int32Array(64);

  return (ids, count) => {
    if (count > slots.length) slots = new Int32Array(2 * count);
    for (let i = 0; i + 1 < count; i++) slots[i] = table.find(ids[i], ids[i + 1]);
    while (count > 1) {
      let rank = NO_MERGE;
      let at = -1;
      for (let i = 0; i + 1 < count; i++) {
        if (slots[i] >= 0 && table.first(slots[i]) < rank) {
          rank = table.first(slots[i]);
          at = i;
        }
      }
      if (at < 0) break;
      ids[at] = table.second(slots[at]);
      count--;
      for (let i = at + 1; i < count; i++) {
        ids[i] = ids[i + 1];
        slots[i] = slots[i + 1];
      }
      if (at > 0) slots[at - 1] = table.find(ids[at - 1], ids[at]);
      if (at + 1 < count) slots[at] = table.find(ids[at], ids[at + 1]);
    }
    return count;
  };
}

/** For long words: a heap of pairs over a linked list. O(count · log count). */
export function createLongMerger(table: PairTable): ApplyMerges {
  const heap = createHeap<number>((a, b) => a < b); // rank · 2³² + position: the order of merging
  let next = new Int32Array(0);
  let previous = new Int32Array(0);

  function consider(ids: Int32Array, left: number, right: number): void {
    const slot = table.find(ids[left], ids[right]);
    if (slot >= 0) heap.push(table.first(slot) * 0x100000000 + left);
  }

  return (ids, count) => {
    if (count > next.length) {
      next = new Int32Array(count);
      previous = new Int32Array(count);
    }
    for (let i = 0; i < count; i++) {
      next[i] = i + 1;
      previous[i] = i - 1;
      if (i + 1 < count) consider(ids, i, i + 1);
    }
    for (let entry = heap.pop(); entry !== undefined; entry = heap.pop()) {
      const left = entry % 0x100000000;
      const right = next[left];
      if (ids[left] < 0 || right >= count) continue;
      const slot = table.find(ids[left], ids[right]);
      if (slot < 0 || table.first(slot) !== (entry - left) / 0x100000000) continue;
      ids[left] = table.second(slot);
      ids[right] = -1;
      next[left] = next[right];
      if (next[left] < count) previous[next[left]] = left;
      if (previous[left] >= 0) consider(ids, previous[left], left);
      if (next[left] < count) consider(ids, left, next[left]);
    }
    let kept = 0;
    for (let i = 0; i < count; i = next[i]) ids[kept++] = ids[i];
    return kept;
  };
}

/** The rank of each merge is its place in `rules.merges`; of a pair listed twice the last counts. */
function mergeTable(merges: BpeRules["merges"]): PairTable {
  const table = new PairTable(merges.length);
  merges.forEach(([left, right, result], rank) => table.set(left, right, rank, result));
  return table;
}

/** An encoder with its own scratch memory and a cache of words of fixed size (4.7 MB), where a new word takes an old one's place. */
export function createBpe(rules: BpeRules): Bpe {
  const { byteIds, unknown, fuseUnknown, wholeWords } = rules;
  const table = mergeTable(rules.merges);
  const mergeShort = createShortMerger(table);
  const mergeLong = createLongMerger(table);
  const cache = createWordCache();
  let scratch = new Int32Array(256);

  function initialIds(bytes: Uint8Array, from: number, to: number): number {
    if (to - from > scratch.length) scratch = new Int32Array(to - from);
    let count = 0;
    let unknownBefore = false;
    for (let i = from; i < to; i++) {
      const id = byteIds[bytes[i]];
      if (id >= 0) scratch[count++] = id;
      else if (unknown !== undefined && !(fuseUnknown && unknownBefore)) scratch[count++] = unknown;
      unknownBefore = id < 0;
    }
    return count;
  }

  function merge(bytes: Uint8Array, from: number, to: number, out: Uint32Array, at: number): number {
    const whole = wholeWords?.get(byteKey(bytes, from, to));
    if (whole !== undefined) {
      out[at] = whole;
      return at + 1;
    }
    let count = initialIds(bytes, from, to);
    if (table.size > 0) count = (count <= SHORT_WORD ? mergeShort : mergeLong)(scratch, count);
    for (let i = 0; i < count; i++) out[at + i] = scratch[i];
    return at + count;
  }

  return {
    encodeWord(bytes, from, to, out, at) {
      if (to - from > CACHE_BYTES) return merge(bytes, from, to, out, at);
      const slot = cache.slot(bytes, from, to);
      const found = cache.read(slot, bytes, from, to, out, at);
      if (found >= 0) return found;
      const end = merge(bytes, from, to, out, at);
      cache.write(slot, bytes, from, to, out, at, end);
      return end;
    },
  };
}

/** Direct-mapped: a word has one slot, which it shares with others. */
function createWordCache() {
  const hashes = new Int32Array(CACHE_SLOTS);
  const sizes = new Uint16Array(CACHE_SLOTS); // bytes · 256 + ids; 0 in an empty slot
  const keys = new Uint8Array(CACHE_SLOTS * CACHE_BYTES);
  const values = new Uint32Array(CACHE_SLOTS * CACHE_IDS);
  let hash = 0;

  return {
    /** Finds a word's slot and keeps its hash for the read or write that follows. */
    slot(bytes: Uint8Array, from: number, to: number): number {
      let h = 0x811c9dc5;
      for (let i = from; i < to; i++) h = Math.imul(h ^ bytes[i], 0x01000193); // FNV-1a
      hash = h ^ (h >>> 15);
      return hash & (CACHE_SLOTS - 1);
    },
    read(slot: number, bytes: Uint8Array, from: number, to: number, out: Uint32Array, at: number): number {
      const size = sizes[slot];
      if (hashes[slot] !== hash || size >> 8 !== to - from) return -1;
      const key = slot * CACHE_BYTES - from;
      for (let i = from; i < to; i++) if (keys[key + i] !== bytes[i]) return -1;
      const count = size & 0xff;
      const value = slot * CACHE_IDS;
      for (let i = 0; i < count; i++) out[at + i] = values[value + i];
      return at + count;
    },
    write(slot: number, bytes: Uint8Array, from: number, to: number, out: Uint32Array, at: number, end: number): void {
      if (end - at > CACHE_IDS) return;
      hashes[slot] = hash;
      sizes[slot] = (to - from) * 256 + (end - at);
      for (let i = from; i < to; i++) keys[slot * CACHE_BYTES + i - from] = bytes[i];
      for (let i = at; i < end; i++) values[slot * CACHE_IDS + i - at] = out[i];
    },
  };
}
