/**
 * Causal attention over rows that lie flat: row n attends to rows starts[n] to n, so that a document sees only itself and
 * no (T, T) matrix or mask is ever made. Grouped query heads share key heads. It knows no model.
 *
 * Forward by online softmax, backward by recomputation from the log-sum-exp (Dao et al. 2022); what lies outside of a
 * row's range is skipped, so cost grows with the sum of squared document lengths.
 */
import {
  type AttentionKernel,
  type AttentionShape,
  type AttentionVariant,
  gradientsOf,
  type OperandPlace,
  type Pass,
} from "./attention_shared.ts";
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
import { coverRows, fitsTexture, type Heads, headsOf, headsTexture, placeOf } from "./heads.ts";

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
  /** Of q, k and v. */
  readonly places: readonly OperandPlace[];
}

/**
 * q (N, H, D); k and v (N, KVH, D), H a multiple of KVH; starts (N) u32, never falling, starts[n] ≤ n → (N, H, D).
 * D is a multiple of 4 from 4 to 128. Each of q, k and v may also be heads within wider rows (`headsIn`): they are read in
 * place, and operands of one tensor have one gradient.
 *
 * @throws RangeError for other shapes, or a dropout rate outside of [0, 1). Compiling it throws RangeError for tensors larger
 * than the adapter binds, and for documents too long for the loops of a CPU driver: some 49,000 rows.
 */
export function attention(
  q: Tensor | Heads,
  k: Tensor | Heads,
  v: Tensor | Heads,
  starts: Tensor,
  options: AttentionOptions,
): Tensor {
  return attentionWithLse(q, k, v, starts, options).o;
}

/** The same, and lse (N, H): the logarithm to base 2 of each row's sum of exponentials of scaled scores. */
export function attentionWithLse(
  q: Tensor | Heads,
  k: Tensor | Heads,
  v: Tensor | Heads,
  starts: Tensor,
  { scale, dropout, longest = starts.shape[0] }: AttentionOptions,
): { readonly o: Tensor; readonly lse: Tensor } {
  const dropped = dropout !== undefined && dropout.rate !== 0;
  const operands = [q, k, v].map((operand) => ({ ...headsOf(operand) }));
  // Heads that are a whole row have a gradient of their own, though another operand be the same tensor.
  const owners = operands.map((heads) => heads.heads * heads.width === heads.stride ? heads : heads.tensor.base);
  const distinct = [...new Set<unknown>(owners)];
  const attributes: Attributes = {
    scale,
    dropout: dropped ? { rate: dropout.rate, site: dropout.site } : null,
    longest,
    places: operands.map((heads, i) => ({ ...placeOf(heads), gradient: distinct.indexOf(owners[i]) })),
  };
  const inputs = [...operands.map(({ tensor }) => tensor), starts, ...(dropped ? [dropout.counter] : [])];
  const [o, lse] = apply(attentionOp, inputs, attributes);
  return { o, lse };
}

/** Inputs: q, k, v, starts, [counter]. Outputs: o, lse. */
const attentionOp: Op<Attributes> = {
  name: "attention",
  infer(inputs, attributes) {
    check(inputs, attributes);
    const [rows] = inputs[0].shape;
    const { heads, width } = attributes.places[0];
    return [{ shape: [rows, heads, width], dtype: "f32" }, { shape: [rows, heads], dtype: "f32" }];
  },
  kernels(call, device) {
    const [, , , starts, ...counter] = call.inputs;
    return variants(call, device).map((variant) => [
      dispatch("attention forward", variant, "forward", operandsOf(call), [starts, ...counter], call.outputs),
    ]);
  },
  cost: (call) => cost(call, 2),
  examples,
  vjp(call, [dy]) {
    if (dy === null) return [];
    const gradients = apply(attentionBackwardOp, [...call.inputs, ...call.outputs, dy], call.attrs);
    return call.attrs.places.map(({ gradient }, i) => ownsGradient(call.attrs, i) ? gradients[gradient] : null);
  },
};

/** Inputs: q, k, v, starts, [counter], o, lse, dy. Outputs: gradients of the tensors that q, k and v lie in. */
const attentionBackwardOp: Op<Attributes> = {
  name: "attention_backward",
  infer: (inputs, attributes) => inputs.slice(0, 3).filter((_, i) => ownsGradient(attributes, i)),
  kernels(call, device) {
    const [, , , starts, ...rest] = call.inputs;
    const [o, lse, dy] = rest.slice(-3);
    const counter = rest.slice(0, -3);
    const [rows, heads, width] = o.shape;
    const shape = shapeOf(call.attrs);
    const operands = [...operandsOf(call), headsOf(dy)];
    const pass = (label: string, variant: AttentionVariant, name: Pass, statistics: Scratch) =>
      dispatch(
        label,
        variant,
        name,
        operands,
        [statistics, ...counter],
        gradientsOf(shape, name).map((i) => call.outputs[i]),
      );
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
        pass("attention dq", variant, "queries", statistics),
        ...headRanges(call, variant, device).map(([FIRST_HEAD, END_HEAD]) => {
          const all = pass("attention dk dv", variant, "keys", statistics);
          return { ...all, wgsl: wgsl(all.wgsl, { FIRST_HEAD, END_HEAD }) };
        }),
      ];
    });
  },
  cost: (call) => cost(call, 5),
  examples,
};

/** Whether operand i is the first of those that share its gradient. */
function ownsGradient({ places }: Attributes, i: number): boolean {
  return places.findIndex(({ gradient }) => gradient === places[i].gradient) === i;
}

function operandsOf({ inputs, attrs }: Call<Attributes>): Heads[] {
  return attrs.places.map((place, i) => ({ ...place, tensor: inputs[i] }));
}

function shapeOf({ scale, dropout, places: [q, k, v] }: Attributes): AttentionShape {
  return { heads: q.heads, keyHeads: k.heads, width: q.width, scale, dropout, q, k, v };
}

function variants(call: Call<Attributes>, device: Capabilities): AttentionVariant[] {
  const operands = operandsOf(call);
  const { maxStorageBufferBindingSize } = device.limits;
  for (const { tensor } of operands) {
    if (byteLength(tensor) > maxStorageBufferBindingSize) {
      throw new RangeError(
        `Cannot bind ${formatType(tensor)} in attention: ${byteLength(tensor)} bytes, the adapter binds ` +
          `${maxStorageBufferBindingSize}; use fewer rows`,
      );
    }
  }
  const shape = shapeOf(call.attrs);
  const lanes = SUBGROUPS.includes(device.subgroupSize) ? laneVariant(shape, device.subgroupSize, false) : null;
  const tiles = tileVariant(shape, device.limits.maxComputeWorkgroupStorageSize);
  const registers = registerVariant(shape, shape.width <= 64 ? 4 : 2);
  const textured = device.cpu && lanes && operands.every((heads) => fitsTexture(heads, device))
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
  const [q, k] = call.attrs.places;
  const group = q.heads / k.heads;
  const most = Math.min(group, Math.floor(device.loopIterations / iterations(call, keys)));
  return Array.from({ length: Math.ceil(group / most) }, (_, i) => [i * most, Math.min(group, (i + 1) * most)]);
}

/** Subgroup sizes the lane kernels serve. */
const SUBGROUPS: readonly number[] = [4, 8, 16, 32, 64];

function dispatch(
  label: string,
  variant: AttentionVariant,
  pass: Pass,
  operands: readonly Heads[],
  reads: readonly (Tensor | Scratch)[],
  writes: readonly Tensor[],
): Dispatch {
  const kernel: AttentionKernel = variant[pass];
  const [rows] = operands[0].tensor.shape;
  return {
    label: `${label} (${variant.name})`,
    wgsl: kernel.wgsl,
    workgroups: kernel.workgroups(rows),
    bindings: [
      ...operands.map((heads) => variant.textures ? headsTexture(heads) : read(heads.tensor)),
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
  const { heads, width } = call.attrs.places[0];
  const bytes = [...new Set([...call.inputs, ...call.outputs])].reduce((sum, tensor) => sum + byteLength(tensor), 0);
  return { flops: products * heads * width * call.inputs[0].shape[0] * (longest(call) + 1), bytes };
}

function check(inputs: readonly TensorType[], { dropout, places }: Attributes): void {
  const [q, , , starts, counter] = inputs;
  const refuse = (why: string) => {
    const operands = places.map(({ heads, width }, i) => `${heads} heads of ${width} in ${formatType(inputs[i])}`);
    const rest = inputs.slice(3).map(formatType);
    throw new RangeError(`Cannot apply attention to ${[...operands, ...rest].join(", ")}: ${why}`);
  };
  const [{ heads, width }, keys, values] = places;
  const [rows] = q.shape;
  if (inputs.slice(0, 3).some(({ dtype }) => dtype !== "f32")) refuse("q, k and v are f32");
  const alike = keys.heads === values.heads && keys.width === width && values.width === width;
  if (!alike || inputs.slice(1, 3).some(({ shape }) => shape[0] !== rows)) {
    refuse("q, k and v agree in rows and width, k and v in heads");
  }
  if (heads % keys.heads !== 0) refuse("query heads are a multiple of key heads");
  if (width % 4 !== 0 || width < 4 || width > 128) refuse("the head width is a multiple of 4 up to 128");
  if (!places.every(({ gradient }) => coverRows(places.filter((other) => other.gradient === gradient)))) {
    refuse("heads of one tensor together are all of its columns, each once, or one operand is");
  }
  if (starts.shape.join() !== `${rows}` || starts.dtype !== "u32") refuse("starts is (rows) u32");
  if (dropout === null) return;
  if (!(dropout.rate > 0 && dropout.rate < 1)) refuse(`a dropout rate is in [0, 1), not ${dropout.rate}`);
  if (counter.shape.join() !== "4" || counter.dtype !== "u32") refuse("the dropout counter is (4) u32");
}
