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
import rowsSource from "./sample_rows.wgsl" with { type: "text" };
import topSource from "./sample_top.wgsl" with { type: "text" };
import {
  apply,
  type Binding,
  type Capabilities,
  count,
  CPU_LOOP_ITERATIONS,
  type Dispatch,
  type DType,
  formatType,
  type Op,
  type Tensor,
  type TensorType,
} from "./gpu/graph.ts";
import { read, slices, write } from "./gpu/primitives.ts";
import { grid, GRID_WIDTH, wgsl } from "./gpu/wgsl.ts";
import { PHILOX_WGSL } from "./random.ts";

const WORKGROUP = 64;
/** Lanes that share a row; many lanes hide a GPU's latency, on a CPU they only cost barriers. */
const FEW_LANES = 256;
const MANY_LANES = 512;
/** Lanes that add up what the others leave. */
const PARTS = 16;
const MAX_VOCABULARY = 2 ** 19;

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
  name: "adjust_logits",
  infer([logits, tokens, counts, biases, penalties], { vocabulary }) {
    requireLogits("adjust", logits, vocabulary);
    const [rows] = logits.shape;
    const list = [rows, tokens.shape[1] || 1];
    requireBeside("adjust", logits, tokens, list, "u32");
    requireBeside("adjust", logits, counts, list, "u32");
    requireBeside("adjust", logits, biases, list, "f32");
    requireBeside("adjust", logits, penalties, [rows, 4], "f32");
    return [logits];
  },
  kernels({ inputs: [, tokens, counts, biases, penalties], outputs: [logits], attrs: { vocabulary } }, device) {
    const perRow = tokens.shape[1];
    const text = wgsl(adjustSource, { STRIDE: logits.shape[1], VOCABULARY: vocabulary, WORKGROUP, GRID_WIDTH });
    return [
      slices(logits, device).map(({ rows: [from, to] }) => ({
        label: "adjust_logits",
        wgsl: text,
        workgroups: grid(Math.ceil((to - from) * perRow / WORKGROUP)),
        bindings: [
          write(logits, [from, to]),
          ...[tokens, counts, biases, penalties].map((tensor) => read(tensor)),
        ],
        uniforms: [from, (to - from) * perRow, perRow],
      })),
    ];
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
    requireBeside("sample", logits, params, [rows, 4], "f32");
    requireBeside("sample", logits, settings, [rows, 4], "u32");
    return [{ shape: [rows], dtype: "u32" }, { shape: [rows], dtype: "f32" }];
  },
  kernels({ inputs: [logits, params, settings], outputs: [tokens, logprobs], attrs }, device) {
    const bindings = [read(params), read(settings), write(tokens), write(logprobs)];
    return onRows("sample", `${PHILOX_WGSL}\n${sampleSource}`, { ...attrs }, logits, bindings, device);
  },
  cost: ({ inputs: [logits] }) => ({ flops: 700 * count(logits), bytes: 40 * 4 * count(logits) }),
};

/**
 * Chooses a token for each row, with its log-probability under the logits as they are given (before temperature and
 * truncation). A row with a NaN gives token 0 and a NaN log-probability.
 *
 * @param logits (S, V padded) f32, V at most 2^19.
 * @param params (S, 4) f32: temperature (0 takes the first of the most likely), top-p (1 keeps all, 0 the first), min-p
 *   (0 keeps all), 0. The kept set is the smallest whose share of what top-k left reaches top-p within a millionth.
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
  name: "top_logprobs",
  infer([logits, targets], { vocabulary, k }) {
    requireLogits("rank", logits, vocabulary);
    const [rows] = logits.shape;
    requireBeside("rank", logits, targets, [rows], "u32");
    const pass = Math.ceil(vocabulary / 4 / FEW_LANES) + MANY_LANES / PARTS + 2 * PARTS;
    const most = Math.min(vocabulary, Math.floor(CPU_LOOP_ITERATIONS / pass) - 2);
    if (!(k >= 1 && k <= most)) throw new RangeError(`Cannot take the top ${k} of ${vocabulary}: want 1 to ${most}`);
    return [{ shape: [rows], dtype: "f32" }, { shape: [rows, k], dtype: "u32" }, { shape: [rows, k], dtype: "f32" }];
  },
  kernels({ inputs: [logits, targets], outputs: [given, ids, logprobs], attrs: { vocabulary, k } }, device) {
    const bindings = [read(targets), write(given), write(ids), write(logprobs)];
    return onRows("top_logprobs", topSource, { vocabulary, COUNT: k }, logits, bindings, device);
  },
  cost: ({ inputs: [logits], attrs: { k } }) => ({ flops: 16 * k * count(logits), bytes: 4 * (k + 1) * count(logits) }),
};

/**
 * The k most likely tokens of each row, best first, and the log-probability of one given token.
 *
 * @param logits (S, V padded) f32.
 * @param targets (S) u32: the tokens asked for; NaN is given for one outside the vocabulary.
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

/** A workgroup for each row of logits, which are bound first, by slices where they pass the binding limit. */
function onRows(
  label: string,
  source: string,
  { vocabulary, ...constants }: Vocabulary & Readonly<Record<string, number>>,
  logits: Tensor,
  bindings: readonly Binding[],
  device: Capabilities,
): readonly (readonly Dispatch[])[] {
  const stride = logits.shape[1];
  const candidates = device.limits.maxComputeInvocationsPerWorkgroup < MANY_LANES
    ? [FEW_LANES]
    : device.cpu
    ? [FEW_LANES, MANY_LANES]
    : [MANY_LANES, FEW_LANES];
  return candidates.map((lanes) => {
    const sizes = { VOCABULARY: vocabulary, LANES: lanes, PARTS, GRID_WIDTH, ...constants };
    const text = wgsl(`${quadText(stride)}\n${rowsSource}\n${source}`, sizes);
    return slices(logits, device).map(({ rows: [from, to] }) => ({
      label,
      wgsl: text,
      workgroups: grid(to - from),
      bindings: [read(logits, [from, to]), ...bindings],
      uniforms: [from, to - from],
    }));
  });
}

function quadText(stride: number): string {
  const vectors = stride % 4 === 0;
  const at = `row * ${stride}u + 4u * quad`;
  const scalars = [0, 1, 2, 3].map((part) => `logits[${at} + ${part}u]`).join(", ");
  return `@group(0) @binding(0) var<storage, read> logits: array<${vectors ? "vec4f" : "f32"}>;
fn quad_at(row: u32, quad: u32) -> vec4f { return ${
    vectors ? `logits[row * ${stride / 4}u + quad]` : `vec4f(${scalars})`
  }; }`;
}

function requireLogits(name: string, logits: TensorType, vocabulary: number): void {
  if (logits.shape.length !== 2 || logits.dtype !== "f32" || logits.shape[1] < vocabulary) {
    throw new RangeError(`Cannot ${name} ${formatType(logits)}: want (S, ${vocabulary} or more) f32`);
  }
  if (!(vocabulary >= 1 && vocabulary <= MAX_VOCABULARY)) {
    throw new RangeError(`Cannot ${name} over ${vocabulary} tokens: want 1 to ${MAX_VOCABULARY}`);
  }
}

function requireBeside(
  name: string,
  logits: TensorType,
  other: TensorType,
  shape: readonly number[],
  dtype: DType,
): void {
  if (other.shape.join() !== shape.join() || other.dtype !== dtype) {
    const wanted = formatType({ shape, dtype });
    throw new RangeError(`Cannot ${name} ${formatType(logits)} with ${formatType(other)}: want ${wanted}`);
  }
}
