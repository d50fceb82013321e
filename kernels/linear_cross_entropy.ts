/**
 * The head of a language model: logits = hidden weightᵀ, and their cross-entropy, in chunks of rows, so that all logits
 * never exist at once. It knows no model; the loss is a sum, weighted by a number that the caller gives as data.
 */
import { isFloat } from "./cast.ts";
import { exampleIds } from "./examples.ts";
import {
  apply,
  byteLength,
  type Call,
  type Capabilities,
  type Dispatch,
  formatType,
  type Op,
  type Scratch,
  scratch,
  type Tensor,
  type TensorType,
} from "./gpu/graph.ts";
import { wgsl } from "./gpu/wgsl.ts";
import rowSource from "./linear_cross_entropy.wgsl" with { type: "text" };
import sumSource from "./linear_cross_entropy_sum.wgsl" with { type: "text" };
import { type Matrix, partCount, type Product, withMatmuls } from "./matmul_dispatch.ts";
import type { Form } from "./matmul_shader.ts";
import { multiply } from "./pointwise.ts";

export interface CrossEntropyOptions {
  /** V: columns of logits from here on are padding of the weight. */
  readonly vocabulary: number;
  /** Bytes of logits that exist at once; at least 64 rows do. Default 50 MiB. */
  readonly logitsBytes?: number;
}

export interface CrossEntropy {
  /** (1): scale times the sum of rowLosses. */
  readonly loss: Tensor;
  /** (N): -log p(target) of each row, 0 where the row is ignored. */
  readonly rowLosses: Tensor;
}

export interface CrossEntropyGradients extends CrossEntropy {
  /** (N, C) */
  readonly dhidden: Tensor;
  /** (V padded, C); rows of the padding are 0. */
  readonly dweight: Tensor;
}

interface Attrs {
  readonly vocabulary: number;
  readonly logitsBytes: number;
  readonly accumulate: boolean;
}

/** 256 rows of 50,304 words: each chunk copies the whole weight to textures twice. */
const LOGITS_BYTES = 50 << 20;

/** Chunks start at multiples of this, so that every row slice is aligned; logits' rows are as long for textures. */
const STEP = 64;

/**
 * Loss of rows hidden (N, C) under weight (V padded, C), each f32, bf16 or f16, for targets (N) i32. A target outside 0…V-1, such as -100, is
 * ignored. `scale` (1) weighs the sum: one over the number of targets makes a mean.
 *
 * @throws RangeError for shapes or types that don't fit.
 */
export function linearCrossEntropy(
  hidden: Tensor,
  weight: Tensor,
  targets: Tensor,
  scale: Tensor,
  { vocabulary, logitsBytes = LOGITS_BYTES }: CrossEntropyOptions,
): CrossEntropy {
  const attrs = { vocabulary, logitsBytes, accumulate: false };
  const [loss, rowLosses] = apply(lossOp, [hidden, weight, targets, scale], attrs);
  return { loss, rowLosses };
}

/**
 * The same, and the f32 gradients of the loss in the same pass, so that the logits are computed once. With `into` (V padded,
 * C) dweight is added to it, in its memory.
 */
export function linearCrossEntropyWithGradients(
  hidden: Tensor,
  weight: Tensor,
  targets: Tensor,
  scale: Tensor,
  { vocabulary, logitsBytes = LOGITS_BYTES, into }: CrossEntropyOptions & { readonly into?: Tensor },
): CrossEntropyGradients {
  const attrs = { vocabulary, logitsBytes, accumulate: into !== undefined };
  const inputs = [hidden, weight, targets, scale, ...(into ? [into] : [])];
  const [loss, rowLosses, dhidden, dweight] = apply(gradientsOp, inputs, attrs);
  return { loss, rowLosses, dhidden, dweight };
}

function infer([hidden, weight, targets, scale, into]: readonly TensorType[], { vocabulary }: Attrs): TensorType[] {
  const pair = `hidden ${formatType(hidden)} and weight ${formatType(weight)}`;
  const matrices = [hidden, weight].every(({ shape, dtype }) => shape.length === 2 && isFloat(dtype));
  if (!matrices || hidden.shape[1] !== weight.shape[1]) {
    throw new RangeError(
      `Cannot take cross-entropy of ${pair}: both must be f32, bf16 or f16 matrices of the same width`,
    );
  }
  if (!(vocabulary >= 1 && vocabulary <= weight.shape[0])) {
    throw new RangeError(
      `Cannot take cross-entropy of ${pair}: vocabulary ${vocabulary} is not 1 to ${weight.shape[0]}`,
    );
  }
  if (targets.dtype !== "i32" || targets.shape.join() !== `${hidden.shape[0]}`) {
    throw new RangeError(
      `Cannot take cross-entropy of ${pair}: targets are ${formatType(targets)}, want one i32 a row`,
    );
  }
  if (scale.dtype !== "f32" || scale.shape.join() !== "1") {
    throw new RangeError(`Cannot take cross-entropy of ${pair}: scale is ${formatType(scale)}, want (1) f32`);
  }
  if (into !== undefined && into.shape.join() !== weight.shape.join()) {
    throw new RangeError(`Cannot take cross-entropy of ${pair}: the running sum is ${formatType(into)}`);
  }
  return [{ shape: [1], dtype: "f32" }, { shape: [hidden.shape[0]], dtype: "f32" }];
}

const lossOp: Op<Attrs> = {
  name: "linear_cross_entropy",
  infer,
  kernels: (call, device) => candidates(call, device, false),
  cost: (call) => cost(call, 1),
  examples,
  vjp({ inputs: [hidden, weight, targets, scale], attrs }, [gradient, rowGradients], into) {
    if (rowGradients !== null) throw new Error("Cannot differentiate rowLosses of linear_cross_entropy: use its loss");
    const factor = multiply(scale, gradient!);
    const options = { ...attrs, into: into[1] ?? undefined };
    const { dhidden, dweight } = linearCrossEntropyWithGradients(hidden, weight, targets, factor, options);
    return [dhidden, dweight, null, null];
  },
};

const gradientsOp: Op<Attrs> = {
  name: "linear_cross_entropy_gradients",
  infer(inputs, attrs) {
    const gradients = inputs.slice(0, 2).map(({ shape }): TensorType => ({ shape, dtype: "f32" }));
    return [...infer(inputs, attrs), ...gradients];
  },
  kernels: (call, device) => candidates(call, device, true),
  cost: (call) => cost(call, 3),
  examples,
  inPlace: ({ attrs }): Record<number, number> => attrs.accumulate ? { 3: 4 } : {},
};

function cost({ inputs: [hidden, weight] }: Call<Attrs>, products: number) {
  const [rows, columns] = hidden.shape;
  const entries = weight.shape[0];
  const bytes = byteLength(hidden) + byteLength(weight) + 8 * rows * entries;
  return { flops: 2 * products * rows * columns * entries, bytes: products * bytes };
}

function examples({ inputs: [, , targets], attrs }: Call<Attrs>) {
  return { 2: Int32Array.from(exampleIds(targets.shape[0], attrs.vocabulary)) };
}

/** One candidate for each way to multiply; the rows' kernel goes with subgroups where the adapter has them. */
function candidates(call: Call<Attrs>, device: Capabilities, gradient: boolean): (readonly Dispatch[])[] {
  const { inputs: [hidden, weight, targets, scale], outputs: [loss, rowLosses], attrs } = call;
  const [rows, width] = [hidden.shape[0], weight.shape[0]];
  const stride = Math.ceil(width / STEP) * STEP;
  const chunk = chunkRows(rows, stride, attrs.logitsBytes, device);
  return withMatmuls(device, (matmul, plainest) => {
    const logits = scratch([chunk, stride]);
    const shader = rowShader(attrs.vocabulary, stride, gradient, device, plainest);
    const dispatches: Dispatch[] = [];
    for (let from = 0; from < rows; from += chunk) {
      const count = Math.min(chunk, rows - from);
      dispatches.push(
        ...matmul(logitsOf(call, logits, from, count)),
        {
          label: "cross_entropy rows",
          wgsl: shader,
          workgroups: [count, 1, 1],
          bindings: [
            { tensor: logits, access: "read_write" },
            { tensor: targets, access: "read" },
            { tensor: scale, access: "read" },
            { tensor: rowLosses, access: "read_write" },
          ],
          uniforms: [from],
        },
        ...(gradient ? gradientsOf(call, logits, from, count).flatMap(matmul) : []),
      );
    }
    return [...dispatches, sum(rowLosses, scale, loss)];
  });
}

/** Even chunks, equal ones where there are any, within the bytes wanted, the binding limit and one dimension of a grid. */
function chunkRows(rows: number, stride: number, bytes: number, { limits }: Capabilities): number {
  const most = Math.min(
    Math.max(STEP, Math.floor(Math.min(bytes, limits.maxStorageBufferBindingSize) / (4 * stride))),
    limits.maxComputeWorkgroupsPerDimension,
  );
  const chunks = partCount(rows, Math.floor(most / STEP) * STEP, STEP);
  return chunks <= 1 ? rows : Math.ceil(rows / chunks / STEP) * STEP;
}

function logitsOf(call: Call<Attrs>, logits: Scratch, row: number, rows: number): Product {
  const [hidden, weight] = call.inputs;
  return product("nt", { tensor: hidden, row }, { tensor: weight }, { tensor: logits }, [rows, ...weight.shape], false);
}

/** From the logits' gradient, in the logits' memory, to rows of dhidden and the whole of dweight. */
function gradientsOf({ inputs, outputs, attrs }: Call<Attrs>, logits: Scratch, row: number, rows: number): Product[] {
  const [hidden, weight] = inputs;
  const [, , dhidden, dweight] = outputs;
  const [entries, columns] = weight.shape;
  const a = { tensor: logits };
  return [
    product("nn", a, { tensor: weight }, { tensor: dhidden, row }, [rows, columns, entries], false),
    product(
      "tn",
      a,
      { tensor: hidden, row },
      { tensor: dweight },
      [entries, columns, rows],
      attrs.accumulate || row > 0,
    ),
  ];
}

function product(form: Form, a: Matrix, b: Matrix, c: Matrix, sizes: readonly number[], accumulate: boolean): Product {
  const [m, n, k] = sizes;
  return { form, a, b, c, m, n, k, accumulate };
}

function sum(rowLosses: Tensor, scale: Tensor, loss: Tensor): Dispatch {
  return {
    label: "cross_entropy sum",
    wgsl: sumSource,
    workgroups: [1, 1, 1],
    bindings: [
      { tensor: rowLosses, access: "read" },
      { tensor: scale, access: "read" },
      { tensor: loss, access: "read_write" },
    ],
    uniforms: [rowLosses.shape[0]],
  };
}

function rowShader(
  vocabulary: number,
  stride: number,
  gradient: boolean,
  { cpu, subgroupSize }: Capabilities,
  plainest: boolean,
): string {
  const subgroup = cpu && subgroupSize > 0 && !plainest;
  const lanes = subgroup ? subgroupSize : cpu ? 8 : 256;
  const constants = { VOCABULARY: vocabulary, STRIDE: stride, GRADIENT: gradient, LANES: lanes };
  return `${subgroup ? subgroupReductions(lanes) : WORKGROUP_REDUCTIONS}\n${wgsl(rowSource, constants)}`;
}

function subgroupReductions(lanes: number): string {
  const steps = Array.from({ length: Math.log2(lanes) }, (_, bit) => `${1 << bit}u`);
  return `fn row_max(lane: u32, x: f32) -> f32 {
  var y = x;
  ${steps.map((step) => `y = max(y, subgroupShuffleXor(y, ${step}));`).join(" ")}
  return y;
}
fn row_sum(lane: u32, x: f32) -> f32 {
  var y = x;
  ${steps.map((step) => `y += subgroupShuffleXor(y, ${step});`).join(" ")}
  return y;
}`;
}

const WORKGROUP_REDUCTIONS = `var<workgroup> parts: array<f32, LANES>;
fn row_max(lane: u32, x: f32) -> f32 {
  parts[lane] = x;
  for (var step = LANES / 2u; step > 0u; step /= 2u) {
    workgroupBarrier();
    if (lane < step) { parts[lane] = max(parts[lane], parts[lane + step]); }
  }
  workgroupBarrier();
  let result = parts[0];
  workgroupBarrier();
  return result;
}
fn row_sum(lane: u32, x: f32) -> f32 {
  parts[lane] = x;
  for (var step = LANES / 2u; step > 0u; step /= 2u) {
    workgroupBarrier();
    if (lane < step) { parts[lane] += parts[lane + step]; }
  }
  workgroupBarrier();
  return parts[0];
}`;
