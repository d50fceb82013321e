/** Copies within a key/value cache, from block to block. It knows no sequence. */
import { embedding } from "../kernels/embedding.ts";
import { type Graph, reshape } from "../kernels/gpu/graph.ts";
import { NO_SLOT, writeKeyValue } from "../kernels/paged_attention.ts";
import { cacheNames } from "../model/context.ts";
import type { Gpt2Config } from "../model/gpt2_config.ts";
import type { Blocks } from "./blocks.ts";
import type { BlockCopy } from "./sequence.ts";

/** Positions copied at once. */
const ROWS = 64;

/** A graph that copies positions in the caches of all layers. Inputs: slots `from` and `to` (64) u32; those to NO_SLOT go nowhere. */
export function copyGraph(
  graph: Graph,
  { n_layer, n_head, n_embd }: Gpt2Config,
  { count, size }: Blocks,
): Record<never, never> {
  const [from, to] = ["from", "to"].map((name) => graph.input(name, [ROWS], "u32"));
  const names = Array.from({ length: n_layer }, (_, layer) => Object.values(cacheNames(layer))).flat();
  for (const name of names) {
    const cache = graph.variable(name, [count * size, n_head, n_embd / n_head]);
    const rows = embedding(reshape(cache, [count * size, n_embd]), from);
    writeKeyValue(cache, reshape(rows, [ROWS, n_head, n_embd / n_head]), to);
  }
  return {};
}

/** Inputs of as many runs as the copies take. No copy may read what another writes. */
export function* copyInputs(copies: readonly BlockCopy[], size: number): Generator<Record<"from" | "to", Uint32Array>> {
  const slots = copies.flatMap(({ from, to, positions }) =>
    Array.from({ length: positions }, (_, i) => ({ from: from * size + i, to: to * size + i }))
  );
  for (let at = 0; at < slots.length; at += ROWS) {
    const [from, to] = [new Uint32Array(ROWS), new Uint32Array(ROWS).fill(NO_SLOT)];
    slots.slice(at, at + ROWS).forEach((slot, i) => [from[i], to[i]] = [slot.from, slot.to]);
    yield { from, to };
  }
}
