/**
 * Causal attention over rows that lie flat: row n attends to rows starts[n] to n, so that a document sees only itself and
 * no (T, T) matrix or mask is ever made. Grouped query heads share key heads. It knows no model.
 *
 * Forward by online softmax, backward by recomputation from the log-sum-exp (Dao et al. 2022); what lies outside of a
 * row's range is skipped, so cost grows with the sum of squared document lengths.
 */
import type { AttentionKernel, AttentionShape, AttentionVariant, Pass } from "./attention_shared.ts";
import { laneVariant } from "./attention_lanes.ts";
import { plainVariant } from "./attention_plain.ts";
import { registerVariant } from "./attention_registers.ts";
import { tileVariant } from "./attention_tiles.ts";
import statisticsSource from "./attention_statistics.wgsl" with { type: "text" };
import { exampleStarts } from "./examples.ts";
import {
  apply,
  type Binding,
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
import { grid, GRID_WIDTH, wgsl } from "./gpu/wgsl.ts";

export interface AttentionOptions {
  /** Factor of the scores, usually 1 / √D. */
  readonly scale: number;
  /** Dropout on the probabilities. counter: (4) u32, see random.ts; site: a constant that tells one use from another. */
  readonly dropout?: { readonly rate: number; readonly site: number; readonly counter: Tensor };
  /** Rows no document passes, where known: estimates of time rest on it, and which kernels a CPU driver can finish. */
  readonly longest?: number;
}

interface Attributes {
  readonly scale: number;
  readonly dropout: { readonly rate: number; readonly site: number } | null;
  readonly longest: number;
}

/**
 * q (N, H, D); k and v (N, KVH, D), H a multiple of KVH; starts (N) u32, never falling, starts[n] ≤ n → (N, H, D).
 * D is a multiple of 4 from 4 to 128.
 *
 * @throws RangeError for other shapes, or a dropout rate outside of [0, 1). Compiling it throws RangeError for tensors larger
 * than the adapter binds, and for documents too long for the loops of a CPU driver: some 49,000 rows.
 */
export function attention(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, options: AttentionOptions): Tensor {
  return attentionWithLse(q, k, v, starts, options).o;
}

/** The same, and lse (N, H): the logarithm to base 2 of each row's sum of exponentials of scaled scores. */
export function attentionWithLse(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  starts: Tensor,
  { scale, dropout, longest = q.shape[0] }: AttentionOptions,
): { readonly o: Tensor; readonly lse: Tensor } {
  const dropped = dropout !== undefined && dropout.rate !== 0;
  const attributes = { scale, dropout: dropped ? { rate: dropout.rate, site: dropout.site } : null, longest };
  const inputs = dropped ? [q, k, v, starts, dropout.counter] : [q, k, v, starts];
  const [o, lse] = apply(attentionOp, inputs, attributes);
  return { o, lse };
}

/** Inputs: q, k, v, starts, [counter]. Outputs: o, lse. */
const attentionOp: Op<Attributes> = {
  name: "attention",
  infer(inputs, attributes) {
    const [q] = inputs;
    check(inputs, attributes);
    return [q, { shape: q.shape.slice(0, 2), dtype: "f32" }];
  },
  kernels(call, device) {
    const [q, k, v, starts, ...counter] = call.inputs;
    return variants(call, device).map((variant) => [
      dispatch("attention forward", variant, "forward", [q, k, v], [starts, ...counter], call.outputs),
    ]);
  },
  cost: (call) => cost(call, 2),
  examples,
  vjp(call, [dy]) {
    if (dy === null) return [];
    const [q, k, v, starts, ...counter] = call.inputs;
    const [o, lse] = call.outputs;
    return [...apply(attentionBackwardOp, [q, k, v, starts, ...counter, o, lse, dy], call.attrs)];
  },
};

/** Inputs: q, k, v, starts, [counter], o, lse, dy. Outputs: dq, dk, dv. */
const attentionBackwardOp: Op<Attributes> = {
  name: "attention_backward",
  infer: ([q, k, v]) => [q, k, v],
  kernels(call, device) {
    const [q, k, v, starts, ...rest] = call.inputs;
    const [o, lse, dy] = rest.slice(-3);
    const counter = rest.slice(0, -3);
    const [dq, dk, dv] = call.outputs;
    const [rows, heads, width] = q.shape;
    return variants(call, device).map((variant) => {
      const statistics = scratch([rows, heads, 4], "u32");
      return [
        {
          label: "attention statistics",
          wgsl: wgsl(statisticsSource, { HEADS: heads, VECTORS: width / 4, GRID_WIDTH }),
          workgroups: grid(Math.ceil(rows * heads / 64)),
          bindings: [...[o, dy, lse, starts].map(read), { tensor: statistics, access: "read_write" }],
          uniforms: [rows],
        },
        dispatch("attention dq", variant, "queries", [q, k, v, dy], [statistics, ...counter], [dq]),
        ...headRanges(call, variant, device).map(([FIRST_HEAD, END_HEAD]) => {
          const all = dispatch("attention dk dv", variant, "keys", [q, k, v, dy], [statistics, ...counter], [dk, dv]);
          return { ...all, wgsl: wgsl(all.wgsl, { FIRST_HEAD, END_HEAD }) };
        }),
      ];
    });
  },
  cost: (call) => cost(call, 5),
  examples,
};

function variants(call: Call<Attributes>, device: Capabilities): AttentionVariant[] {
  const [q, k, v] = call.inputs;
  const { maxStorageBufferBindingSize } = device.limits;
  for (const tensor of [q, k, v]) {
    if (byteLength(tensor) > maxStorageBufferBindingSize) {
      throw new RangeError(
        `Cannot bind ${formatType(tensor)} in attention: ${byteLength(tensor)} bytes, the adapter binds ` +
          `${maxStorageBufferBindingSize}; use fewer rows`,
      );
    }
  }
  const [, heads, width] = q.shape;
  const shape: AttentionShape = { heads, keyHeads: k.shape[1], width, ...call.attrs };
  const lanes = SUBGROUPS.includes(device.subgroupSize) ? laneVariant(shape, device.subgroupSize, false) : null;
  const tiles = tileVariant(shape, device.limits.maxComputeWorkgroupStorageSize);
  const registers = registerVariant(shape, width <= 64 ? 4 : 2);
  const textured = device.cpu && lanes && fitsTextures([q, k], device)
    ? laneVariant(shape, device.subgroupSize, true)
    : null;
  const ordered = device.cpu ? [textured, lanes, registers, tiles] : [tiles, lanes, registers];
  const made = [...ordered, plainVariant(shape)].filter((variant) => variant !== null);
  const finished = made.filter((variant) =>
    PASSES.every((pass) => iterations(call, variant[pass]) <= device.loopIterations)
  );
  if (finished.length > 0) return finished;
  throw new RangeError(
    `Cannot attend within ${longest(call)} rows: this adapter's loops end after ${device.loopIterations} iterations; ` +
      "use shorter documents",
  );
}

const PASSES: readonly Pass[] = ["forward", "queries", "keys"];

function examples(call: Call<Attributes>): Readonly<Record<number, Uint32Array>> {
  return { 3: exampleStarts(call.inputs[3].shape[0], longest(call)) };
}

function longest({ inputs: [q], attrs }: Call<Attributes>): number {
  return Math.min(q.shape[0], attrs.longest);
}

function iterations(call: Call<Attributes>, kernel: AttentionKernel): number {
  return kernel.iterations(longest(call));
}

/** Heads of a group that one dispatch goes through: as many as the adapter's loops allow. */
function headRanges(call: Call<Attributes>, { keys }: AttentionVariant, device: Capabilities): [number, number][] {
  const [q, k] = call.inputs;
  const group = q.shape[1] / k.shape[1];
  const most = Math.min(group, Math.floor(device.loopIterations / iterations(call, keys)));
  return Array.from({ length: Math.ceil(group / most) }, (_, i) => [i * most, Math.min(group, (i + 1) * most)]);
}

/** Subgroup sizes the lane kernels serve. */
const SUBGROUPS: readonly number[] = [4, 8, 16, 32, 64];

/** Texture rows are copied by multiples of 256 bytes, and a texture has its greatest extent. */
function fitsTextures(operands: readonly Tensor[], { limits }: Capabilities): boolean {
  return operands.every(({ shape: [rows, heads, width] }) =>
    heads * width % 64 === 0 && heads * width / 4 <= limits.maxTextureDimension2D &&
    rows <= limits.maxTextureDimension2D
  );
}

function dispatch(
  label: string,
  variant: AttentionVariant,
  pass: Pass,
  operands: readonly Tensor[],
  reads: readonly (Tensor | Scratch)[],
  writes: readonly Tensor[],
): Dispatch {
  const kernel: AttentionKernel = variant[pass];
  const rows = operands[0].shape[0];
  const operand = (tensor: Tensor): Binding =>
    variant.textures
      ? { tensor, access: "read", as: { texture: "rgba32float", rowLength: tensor.shape[1] * tensor.shape[2] } }
      : read(tensor);
  return {
    label: `${label} (${variant.name})`,
    wgsl: kernel.wgsl,
    workgroups: kernel.workgroups(rows),
    bindings: [
      ...operands.map(operand),
      ...reads.map(read),
      ...writes.map((tensor): Binding => ({ tensor, access: "read_write" })),
    ],
    uniforms: [rows],
  };
}

function read(tensor: Tensor | Scratch): Binding {
  return { tensor, access: "read" };
}

/** As if all documents were as long as the longest. `products` counts matrix products of half a square. */
function cost(call: Call<Attributes>, products: number): { flops: number; bytes: number } {
  const [rows, heads, width] = call.inputs[0].shape;
  const bytes = [...call.inputs, ...call.outputs].reduce((sum, tensor) => sum + byteLength(tensor), 0);
  return { flops: products * heads * width * rows * (longest(call) + 1), bytes };
}

function check(inputs: readonly TensorType[], { dropout }: Attributes): void {
  const [q, k, v, starts, counter] = inputs;
  const refuse = (why: string) => {
    throw new RangeError(`Cannot apply attention to ${inputs.map(formatType).join(", ")}: ${why}`);
  };
  if ([q, k, v].some((tensor) => tensor.shape.length !== 3 || tensor.dtype !== "f32")) {
    refuse("q, k and v are (rows, heads, width) f32");
  }
  const [rows, heads, width] = q.shape;
  if (k.shape.join() !== v.shape.join() || k.shape[0] !== rows || k.shape[2] !== width) {
    refuse("q, k and v agree in rows and width, k and v in heads");
  }
  if (heads % k.shape[1] !== 0) refuse("query heads are a multiple of key heads");
  if (width % 4 !== 0 || width < 4 || width > 128) refuse("the head width is a multiple of 4 up to 128");
  if (starts.shape.join() !== `${rows}` || starts.dtype !== "u32") refuse("starts is (rows) u32");
  if (dropout === null) return;
  if (!(dropout.rate > 0 && dropout.rate < 1)) refuse(`a dropout rate is in [0, 1), not ${dropout.rate}`);
  if (counter.shape.join() !== "4" || counter.dtype !== "u32") refuse("the dropout counter is (4) u32");
}
