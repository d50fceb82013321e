/** The reference every language model must beat: predicting each token by its frequency alone. It knows no model. */
import { join } from "node:path";
import type { Manifest, Split } from "./manifest.ts";
import { Shard } from "./shards.ts";

/** Training tokens counted at most: more change nothing that shows. */
const MOST_TOKENS = 32_000_000;
const READ_TOKENS = 1 << 18;

/**
 * Cross-entropy of the held-out tokens under the training tokens' counts, in nats a token. One is added to each count
 * (Laplace), so that a token the training text lacks costs much but not everything.
 */
export function unigramEntropy(folder: string, manifest: Manifest): number {
  const seen = countTokens(folder, manifest, "train");
  const heldOut = countTokens(folder, manifest, "validation");
  const total = seen.reduce((sum, count) => sum + count, 0) + seen.length;
  let nats = 0;
  heldOut.forEach((count, token) => nats -= count * Math.log((seen[token] + 1) / total));
  return nats / heldOut.reduce((sum, count) => sum + count, 0);
}

/** How often each token stands in a split, padding left out; of a large split, in its first shards. */
function countTokens(folder: string, manifest: Manifest, split: Split): Float64Array {
  const counts = new Float64Array(manifest.vocabSize);
  let left = MOST_TOKENS;
  for (const { file } of manifest.splits[split].shards) {
    if (left <= 0) break;
    using shard = new Shard(join(folder, file));
    const { rows, context, tokens } = shard.header;
    const width = context + 1;
    const step = Math.max(1, Math.floor(READ_TOKENS / width));
    for (let row = 0; row < rows && left > 0; row += step) {
      const part = shard.rows(row, Math.min(step, rows - row)).subarray(0, tokens - row * width);
      for (const token of part) counts[token]++;
      left -= part.length;
    }
  }
  return counts;
}
