/**
 * What decoding steps hand on to each other on the GPU: the token and position that come next, the draws made, and a ring
 * of what was chosen, so that several steps run before any is read. It knows no model and no cache.
 */
import type { Graph, Tensor } from "../kernels/gpu/graph.ts";
import type { Program } from "../kernels/gpu/program.ts";
import type { Store } from "../kernels/gpu/store.ts";
import { type Fed, feedToken } from "../kernels/sample_feed.ts";
import type { TokenLogprob } from "../model/generate.ts";
import { pairs, TOP_LOGPROBS } from "../model/sampling.ts";

/** Variables of a store that one sequence's steps share; they stand there until the store is disposed. */
export class Feed {
  readonly #best: number;
  readonly #entries: Readonly<Record<keyof Fed, { readonly name: string; readonly shape: readonly number[] }>>;

  /** @param rows choices that the ring keeps. */
  constructor(readonly store: Store, readonly rows: number, vocabulary: number) {
    this.#best = Math.min(TOP_LOGPROBS, vocabulary);
    this.#entries = {
      token: { name: "next.token", shape: [1] },
      position: { name: "next.position", shape: [1] },
      settings: { name: "next.settings", shape: [1, 4] },
      ring: { name: "chosen", shape: [rows, 2 + 2 * this.#best] },
    };
    store.allocate("next", Object.values(this.#entries).map((entry) => ({ ...entry, dtype: "u32" })));
  }

  /** The variables in a graph. */
  tensors(graph: Graph): Fed {
    const { token, position, settings, ring } = this.#entries;
    const variable = ({ name, shape }: typeof token) => graph.variable(name, shape, "u32");
    return { token: variable(token), position: variable(position), settings: variable(settings), ring: variable(ring) };
  }

  /** Ends a graph that chooses a token; the program can then be read by `read`. */
  end(graph: Graph, sampled: Readonly<Record<string, Tensor>>): { readonly ring: Tensor } {
    const { tokens, logprobs, top_ids, top_logprobs } = sampled;
    const best = top_ids && { ids: top_ids, logprobs: top_logprobs };
    return { ring: feedToken(this.tensors(graph), { tokens, logprobs, best }) };
  }

  /** What the next step runs from. */
  start(token: number, position: number, settings: Uint32Array): void {
    const { token: { name }, ...entries } = this.#entries;
    this.store.write(name, Uint32Array.of(token));
    this.store.write(entries.position.name, Uint32Array.of(position));
    this.store.write(entries.settings.name, settings);
  }

  /** Choices `from` to `from + count` of a sequence, at most the ring's last ones, in one wait. */
  async read(program: Program, from: number, count: number, alternatives: number): Promise<TokenLogprob[]> {
    const [ring] = await program.read("ring");
    const [best, width] = [this.#best, 2 + 2 * this.#best];
    return Array.from({ length: count }, (_, i) => {
      const row = (from + i) % this.rows * width;
      const words = new Uint32Array(ring, row * 4, width);
      const numbers = new Float32Array(ring, row * 4, width);
      const top = pairs(words.subarray(2, 2 + best), numbers.subarray(2 + best), Math.min(alternatives, best));
      return { token: words[0], logprob: numbers[1], top };
    });
  }
}
