/** Learns byte-pair merges from the words of a corpus (Sennrich et al. 2016). It knows no text and no files. */

import { bytesInAlphabetOrder, tokenOfBytes } from "./byte_level.ts";
import type { Vocabulary } from "./gpt2_vocabulary.ts";
import { createHeap } from "./heap.ts";
import { PairTable } from "./pair_table.ts";
import type { WordCounts } from "./word_counts.ts";

/** An adjacent pair of tokens, how often it stands in the corpus, and the words that hold it (some no longer do). */
interface Pair {
  readonly left: number;
  readonly right: number;
  readonly words: number[];
  count: number;
}

/** Every word as token ids, back to back. */
interface Corpus {
  readonly ids: Int32Array;
  readonly starts: Int32Array;
  readonly lengths: Int32Array;
  readonly counts: Float64Array;
}

function createCorpus(words: WordCounts): Corpus {
  const idOfByte = new Int32Array(256);
  bytesInAlphabetOrder.forEach((byte, id) => idOfByte[byte] = id);
  const starts = new Int32Array(words.size);
  const lengths = new Int32Array(words.size);
  const counts = new Float64Array(words.size);
  let total = 0;
  for (let word = 0; word < words.size; word++) {
    starts[word] = total;
    lengths[word] = words.bytes(word).length;
    counts[word] = words.count(word);
    total += lengths[word];
  }
  const ids = new Int32Array(total);
  for (let word = 0; word < words.size; word++) {
    const bytes = words.bytes(word);
    for (let i = 0; i < bytes.length; i++) ids[starts[word] + i] = idOfByte[bytes[i]];
  }
  return { ids, starts, lengths, counts };
}

/** The pairs of a corpus and the most frequent among them; of equals, the one with the smaller left id, then right id. */
function createPairs(corpus: Corpus) {
  const table = new PairTable(1 << 16);
  const pairs: Pair[] = [];
  const queue = createHeap<{ readonly pair: Pair; readonly count: number }>((a, b) =>
    a.count !== b.count
      ? a.count > b.count
      : a.pair.left !== b.pair.left
      ? a.pair.left < b.pair.left
      : a.pair.right < b.pair.right
  );
  const raised = new Set<Pair>();

  function pairOf(left: number, right: number): Pair {
    const slot = table.find(left, right);
    if (slot >= 0) return pairs[table.first(slot)];
    const pair: Pair = { left, right, words: [], count: 0 };
    table.set(left, right, pairs.length);
    pairs.push(pair);
    return pair;
  }

  return {
    add(left: number, right: number, word: number): void {
      const pair = pairOf(left, right);
      pair.count += corpus.counts[word];
      if (pair.words.at(-1) !== word) pair.words.push(word);
      raised.add(pair);
    },
    remove(left: number, right: number, word: number): void {
      pairOf(left, right).count -= corpus.counts[word];
    },
    /** The first pair that is still there, with its true count; undefined when no two tokens are adjacent. */
    takeFirst(): Pair | undefined {
      for (const pair of raised) if (pair.count > 0) queue.push({ pair, count: pair.count });
      raised.clear();
      for (let entry = queue.pop(); entry !== undefined; entry = queue.pop()) {
        const { pair, count } = entry;
        if (pair.count === count) return pair;
        if (pair.count > 0) queue.push({ pair, count: pair.count });
      }
      return undefined;
    },
  };
}

/** Puts `id` for every occurrence of a pair in one word, from the left, and keeps the pairs' counts true. */
function mergeInWord(
  corpus: Corpus,
  pairs: ReturnType<typeof createPairs>,
  word: number,
  pair: Pair,
  id: number,
): void {
  const { ids, starts, lengths } = corpus;
  const { left, right } = pair;
  const start = starts[word];
  const end = start + lengths[word];
  let kept = start;
  for (let i = start; i < end; i++) {
    if (ids[i] !== left || i + 1 === end || ids[i + 1] !== right) {
      ids[kept++] = ids[i];
      continue;
    }
    pairs.remove(left, right, word);
    if (kept > start) {
      pairs.remove(ids[kept - 1], left, word);
      pairs.add(ids[kept - 1], id, word);
    }
    if (i + 2 < end) {
      pairs.remove(right, ids[i + 2], word);
      pairs.add(id, ids[i + 2], word);
    }
    ids[kept++] = id;
    i++;
  }
  lengths[word] = kept - start;
}

/**
 * Merges the most frequent adjacent pair again and again until there are `size` tokens or nothing is left to merge. Of equally
 * frequent pairs the one with the smaller left id comes first, then the smaller right id; the first 256 ids are the bytes in
 * GPT-2's order. No two merges make the same token: the same bytes, where no token crosses their ends, have gone through the same
 * merges wherever they stand.
 */
export function trainMerges(words: WordCounts, size: number, onToken?: (tokens: number) => void): Vocabulary {
  const corpus = createCorpus(words);
  const pairs = createPairs(corpus);
  for (let word = 0; word < words.size; word++) {
    const start = corpus.starts[word];
    for (let i = start; i + 1 < start + corpus.lengths[word]; i++) pairs.add(corpus.ids[i], corpus.ids[i + 1], word);
  }
  const tokens = bytesInAlphabetOrder.map((byte) => tokenOfBytes([byte]));
  const merges: [string, string][] = [];
  while (tokens.length < size) {
    const pair = pairs.takeFirst();
    if (pair === undefined) break;
    const id = tokens.push(tokens[pair.left] + tokens[pair.right]) - 1;
    merges.push([tokens[pair.left], tokens[pair.right]]);
    for (const word of pair.words.splice(0)) mergeInWord(corpus, pairs, word, pair, id);
    onToken?.(tokens.length);
  }
  return { tokens, merges };
}
