/**
 * Choosing tokens on the GPU: penalties and bias, temperature, top-k, nucleus, min-p, and log-probabilities. It knows
 * rows of logits, no sequences and no text.
 *
 * Truncations apply in this order: temperature, top-k, top-p over what top-k left, min-p. Tokens are ordered by logit and
 * equal ones by id, the lower first; each truncation keeps a prefix of that order. Nothing is sorted: the prefix's end is
 * found by bisection over the bits of the logits.
 */
import sampleSource from "./sample.wgsl" with { type: "text" };
import adjustSource from "./sample_adjust.wgsl" with { type: "text" };
import topSource from "./sample_top.wgsl" with { type: "text" };
import { apply, count, type Dispatch, formatType, type Op, type Tensor, type TensorType } from "./gpu/graph.ts";
import { grid, GRID_WIDTH, wgsl } from "./gpu/wgsl.ts";
import { PHILOX_WGSL } from "./random.ts";

const LANES = 64;

/** An entry's token where there is none. */
export const NO_TOKEN = 0xffff_ffff;
/** Set in an entry's count where the token stands in the prompt or the output: the repetition penalty applies. */
export const SEEN = 0x8000_0000;

interface Vocabulary {
  /** Tokens; the logits' columns past them are padding. */
  readonly vocabulary: number;
}

/** Per-row lists of tokens to adjust, M entries a row, each naming another token. */
export interface Adjustments {
  readonly tokens: Tensor; // (S, M) u32, NO_TOKEN where unused
  /** Times generated so far; bit 31 (SEEN) where the token stands in prompt or output. */
  readonly counts: Tensor; // (S, M) u32
  readonly biases: Tensor; // (S, M) f32
  /** Repetition, presence, frequency, 0. */
  readonly penalties: Tensor; // (S, 4) f32
}

const adjustOp: Op<Vocabulary> = {
  name: "adjustLogits",
  infer([logits, tokens, counts, biases, penalties], { vocabulary }) {
    requireLogits("adjustLogits", logits, vocabulary);
    const [rows] = logits.shape;
    for (const list of [tokens, counts, biases]) {
      if (list.shape[0] !== rows || count(list) !== count(tokens)) refuse("adjustLogits", logits, list);
    }
    if (penalties.shape.join() !== [rows, 4].join()) refuse("adjustLogits", logits, penalties);
    return [logits];
  },
  kernels({ inputs: [, tokens, counts, biases, penalties], outputs: [logits], attrs: { vocabulary } }) {
    const constants = { STRIDE: logits.shape[1], VOCABULARY: vocabulary, GRID_WIDTH };
    return [[{
      label: "adjustLogits",
      wgsl: wgsl(adjustSource, constants),
      workgroups: grid(Math.ceil(count(tokens) / 64)),
      bindings: [write(logits), read(tokens), read(counts), read(biases), read(penalties)],
      uniforms: [count(tokens), count(tokens) / logits.shape[0]],
    }]];
  },
  cost: ({ inputs: [, tokens] }) => ({ flops: 6 * count(tokens), bytes: 20 * count(tokens) }),
  inPlace: () => ({ 0: 0 }),
};

/**
 * Logits after penalties and bias, in place: the repetition penalty (Keskar et al. 2019) divides a seen token's positive
 * logit and multiplies a negative one; presence is subtracted once from a generated token, frequency once for each time.
 *
 * @param logits (S, V padded) f32.
 * @throws RangeError for shapes that don't belong together.
 */
export function adjustLogits(logits: Tensor, adjustments: Adjustments, vocabulary: number): Tensor {
  const { tokens, counts, biases, penalties } = adjustments;
  return apply(adjustOp, [logits, tokens, counts, biases, penalties], { vocabulary })[0];
}

const sampleOp: Op<Vocabulary> = {
  name: "sample",
  infer([logits, params, settings], { vocabulary }) {
    requireLogits("sample", logits, vocabulary);
    const [rows] = logits.shape;
    if (params.shape.join() !== [rows, 4].join()) refuse("sample", logits, params);
    if (settings.shape.join() !== [rows, 4].join()) refuse("sample", logits, settings);
    return [{ shape: [rows], dtype: "u32" }, { shape: [rows], dtype: "f32" }];
  },
  kernels({ inputs: [logits, params, settings], outputs: [tokens, logprobs], attrs: { vocabulary } }) {
    const constants = { STRIDE: logits.shape[1], VOCABULARY: vocabulary, LANES };
    const bindings = [read(logits), read(params), read(settings), write(tokens), write(logprobs)];
    return [[onRows("sample", wgsl(`${PHILOX_WGSL}\n${sampleSource}`, constants), logits, bindings)]];
  },
  cost: ({ inputs: [logits] }) => ({ flops: 200 * count(logits), bytes: 70 * 4 * count(logits) }),
};

/**
 * Chooses a token for each row, with its log-probability under the logits as they are given (before temperature and
 * truncation).
 *
 * @param logits (S, V padded) f32.
 * @param params (S, 4) f32: temperature (0 takes the first of the most likely), top-p (1 keeps all), min-p (0 keeps all), 0.
 * @param settings (S, 4) u32: top-k (0 keeps all), two words of seed, the position, which counts the draws of a seed.
 * @returns tokens (S) u32 and log-probabilities (S) f32.
 */
export function sample(
  logits: Tensor,
  params: Tensor,
  settings: Tensor,
  vocabulary: number,
): { readonly tokens: Tensor; readonly logprobs: Tensor } {
  const [tokens, logprobs] = apply(sampleOp, [logits, params, settings], { vocabulary });
  return { tokens, logprobs };
}

const topOp: Op<Vocabulary & { readonly k: number }> = {
  name: "topLogprobs",
  infer([logits, targets], { vocabulary, k }) {
    requireLogits("topLogprobs", logits, vocabulary);
    const [rows] = logits.shape;
    if (targets.shape.join() !== `${rows}` || targets.dtype !== "u32") refuse("topLogprobs", logits, targets);
    if (!(k >= 1 && k <= vocabulary)) throw new RangeError(`Cannot take the top ${k} of ${vocabulary} tokens`);
    return [{ shape: [rows], dtype: "f32" }, { shape: [rows, k], dtype: "u32" }, { shape: [rows, k], dtype: "f32" }];
  },
  kernels({ inputs: [logits, targets], outputs: [given, ids, logprobs], attrs: { vocabulary, k } }) {
    const constants = { STRIDE: logits.shape[1], VOCABULARY: vocabulary, LANES, COUNT: k };
    const bindings = [read(logits), read(targets), write(given), write(ids), write(logprobs)];
    return [[onRows("topLogprobs", wgsl(topSource, constants), logits, bindings)]];
  },
  cost: ({ inputs: [logits], attrs: { k } }) => ({ flops: 8 * count(logits), bytes: 4 * (k + 1) * count(logits) }),
};

/**
 * The k most likely tokens of each row, best first, and the log-probability of one given token.
 *
 * @param logits (S, V padded) f32.
 * @param targets (S) u32: the tokens asked for.
 * @returns given (S) f32, ids (S, k) u32, logprobs (S, k) f32; natural logarithms.
 */
export function topLogprobs(
  logits: Tensor,
  targets: Tensor,
  vocabulary: number,
  k: number,
): { readonly given: Tensor; readonly ids: Tensor; readonly logprobs: Tensor } {
  const [given, ids, logprobs] = apply(topOp, [logits, targets], { vocabulary, k });
  return { given, ids, logprobs };
}

function onRows(label: string, text: string, logits: Tensor, bindings: Dispatch["bindings"]): Dispatch {
  return { label, wgsl: text, workgroups: [logits.shape[0], 1, 1], bindings };
}

const read = (tensor: Tensor) => ({ tensor, access: "read" }) as const;
const write = (tensor: Tensor) => ({ tensor, access: "read_write" }) as const;

function requireLogits(name: string, logits: TensorType, vocabulary: number): void {
  if (logits.shape.length !== 2 || logits.dtype !== "f32" || logits.shape[1] < vocabulary) {
    throw new RangeError(`Cannot ${name} ${formatType(logits)}: want (S, ${vocabulary} or more) f32`);
  }
}

function refuse(name: string, logits: TensorType, other: TensorType): never {
  throw new RangeError(`Cannot ${name} ${formatType(logits)} with ${formatType(other)}: rows or lists differ`);
}
