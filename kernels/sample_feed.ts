/**
 * The end of a decoding step that needs no host: the chosen token becomes the next step's input, and a ring keeps it until
 * it is read. It knows one sequence, no model and no cache.
 */
import { apply, formatType, type Op, type Tensor } from "./gpu/graph.ts";
import { read, write } from "./gpu/primitives.ts";
import { wgsl } from "./gpu/wgsl.ts";
import feedSource from "./sample_feed.wgsl" with { type: "text" };

/** What steps hand on to each other: variables of a store. */
export interface Fed {
  readonly token: Tensor; // (1) u32
  readonly position: Tensor; // (1) u32
  /** As `sample` takes them; the position counts the tokens made. */
  readonly settings: Tensor; // (1, 4) u32
  /** A choice a row: token, log-probability, K ids of the most likely tokens, their K log-probabilities, as 32 bits each. */
  readonly ring: Tensor; // (R, 2 + 2K) u32
}

/** What a step chose; without `best` that part of the ring's row stays as it is. */
export interface Choice {
  readonly tokens: Tensor; // (1) u32
  readonly logprobs: Tensor; // (1) f32
  readonly best?: { readonly ids: Tensor; readonly logprobs: Tensor }; // (1, K) u32, (1, K) f32
}

const BEST = `@group(0) @binding(6) var<storage, read> best_ids: array<u32>;
@group(0) @binding(7) var<storage, read> best_logprobs: array<u32>;`;

const COPY_BEST = `for (var i = 0u; i < COUNT; i++) {
    ring[row + 2u + i] = best_ids[i];
    ring[row + 2u + COUNT + i] = best_logprobs[i];
  }`;

const feedOp: Op<undefined> = {
  name: "feed_token",
  infer(inputs) {
    const [token, position, settings, ring, chosen, logprob, ...best] = inputs.map(formatType);
    const [rows, width] = inputs[3].shape;
    const list = (dtype: string) => `(1, ${(width - 2) / 2}) ${dtype}`;
    const right = token === "(1) u32" && position === "(1) u32" && settings === "(1, 4) u32" && chosen === "(1) u32" &&
      logprob === "(1) f32" && ring === `(${rows}, ${width}) u32` &&
      (best.length === 0 || best.join() === [list("u32"), list("f32")].join());
    if (!right) throw new RangeError(`Cannot feed a token on by ${inputs.map(formatType).join(", ")}`);
    return inputs.slice(0, 4);
  },
  kernels({ inputs, outputs }) {
    const [ROWS, WIDTH] = inputs[3].shape;
    const best = inputs.length > 6;
    const source = feedSource.replace("COPY_BEST", best ? COPY_BEST : "").replace("BEST", best ? BEST : "");
    return [[{
      label: "feed token",
      wgsl: wgsl(source, { ROWS, WIDTH, COUNT: (WIDTH - 2) / 2 }),
      workgroups: [1, 1, 1],
      bindings: [...outputs.map((output) => write(output)), ...inputs.slice(4).map((input) => read(input))],
    }]];
  },
  cost: ({ inputs: [, , , ring] }) => ({ flops: 0, bytes: 8 * (ring.shape[1] + 6) }),
  inPlace: () => ({ 0: 0, 1: 1, 2: 2, 3: 3 }),
};

/**
 * Feeds a choice on, in place: it is written to row `settings[3] % R` of the ring and becomes `token`; `position` and
 * `settings[3]` go on by one.
 *
 * @returns the ring.
 * @throws RangeError for shapes that don't belong together.
 */
export function feedToken({ token, position, settings, ring }: Fed, { tokens, logprobs, best }: Choice): Tensor {
  const more = best === undefined ? [] : [best.ids, best.logprobs];
  return apply(feedOp, [token, position, settings, ring, tokens, logprobs, ...more], undefined)[3];
}
