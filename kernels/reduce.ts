/** Sums over whole tensors, in a fixed order, and what clipping needs of them. It knows no optimizer. */
import { elementwise } from "./elementwise.ts";
import {
  apply,
  type Capabilities,
  count,
  type Dispatch,
  formatType,
  type Op,
  scratch,
  type Tensor,
} from "./gpu/graph.ts";
import { fill, read, slices, write } from "./gpu/primitives.ts";
import { grid, GRID_WIDTH, wgsl } from "./gpu/wgsl.ts";
import { multiply, scale } from "./pointwise.ts";

/** Lanes of a workgroup: a CPU driver runs a subgroup's loop to its end, which is fast over memory without gaps. */
const LANES = { cpu: 8, gpu: 64 };
/** Elements that one workgroup adds up. */
const BLOCK = 8192;
/** More elements than any binding has, so that one workgroup adds up all. */
const WHOLE = 0x8000_0000;

const SUM = `
struct Uniforms { count: u32, first: u32, groups: u32 }
@group(0) @binding(0) var<storage, read> x: array<T>;
@group(0) @binding(1) var<storage, read_write> partials: array<f32>;
@group(0) @binding(2) var<uniform> u: Uniforms;
var<workgroup> sums: array<f32, LANES>;
@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) lane: u32) {
  let group = id.x + id.y * GRID_WIDTH;
  if (group >= u.groups) { return; }
  let end = min(u.count, (group + 1u) * PER_GROUP);
  var sum = T();
  for (var i = group * PER_GROUP + lane; i < end; i += LANES) { sum += TERM; }
  sums[lane] = dot(sum, T(1.0));
  workgroupBarrier();
  for (var half = LANES / 2u; half > 0u; half /= 2u) {
    if (lane < half) { sums[lane] += sums[lane + half]; }
    workgroupBarrier();
  }
  if (lane == 0u) { partials[u.first + group] = sums[0]; }
}`;

interface Attrs {
  readonly square: boolean;
}

const sumOp: Op<Attrs> = {
  name: "sum",
  infer(inputs) {
    for (const input of inputs) {
      if (input.dtype !== "f32" || count(input) === 0) {
        throw new RangeError(`Cannot sum ${formatType(input)}: want f32`);
      }
    }
    return [{ shape: [1], dtype: "f32" }];
  },
  kernels({ inputs, outputs: [total], attrs: { square } }, device) {
    const parts = inputs.flatMap((tensor) => slices(tensor, device).map((slice) => ({ tensor, ...slice })));
    const elements = parts.map((part) => part.elements);
    const groups = elements.map((size) => Math.ceil(size / BLOCK));
    const all = groups.reduce((sum, size) => sum + size, 0);
    const partials = scratch([all]);
    let first = 0;
    const dispatches = parts.map(({ tensor, rows }, part): Dispatch => {
      const lanes = elements[part] % 4 === 0 ? 4 : 1;
      const dispatch = {
        label: square ? "sum_of_squares" : "sum",
        wgsl: shader(lanes, square, BLOCK / lanes, device),
        workgroups: grid(groups[part]),
        bindings: [read(tensor, rows), write(partials)],
        uniforms: [elements[part] / lanes, first, groups[part]],
      } as const;
      first += groups[part];
      return dispatch;
    });
    return [[...dispatches, {
      label: "sum of partials",
      wgsl: shader(1, false, WHOLE, device),
      workgroups: [1, 1, 1],
      bindings: [read(partials), write(total)],
      uniforms: [all, 0, 1],
    }]];
  },
  cost({ inputs }) {
    const elements = inputs.reduce((sum, input) => sum + count(input), 0);
    return { flops: 2 * elements, bytes: 4 * elements };
  },
  vjp: ({ inputs, attrs: { square } }, [grad]) =>
    inputs.map((x) => scaleBy(square ? scale(x, 2) : fill(x.graph, x.shape, 1), grad!)),
};

function shader(lanes: 1 | 4, square: boolean, perGroup: number, { cpu }: Capabilities): string {
  const types = lanes === 4 ? "alias T = vec4f;" : "alias T = f32;\nfn dot(a: f32, b: f32) -> f32 { return a * b; }";
  const text = SUM.replace("TERM", square ? "x[i] * x[i]" : "x[i]");
  return `${types}\n${wgsl(text, { LANES: cpu ? LANES.cpu : LANES.gpu, GRID_WIDTH, PER_GROUP: perGroup })}`;
}

/** Σ x, (1). */
export function sum(x: Tensor): Tensor {
  return apply(sumOp, [x], { square: false })[0];
}

/** Σ x² over all elements of all tensors, (1). */
export function sumOfSquares(tensors: readonly Tensor[]): Tensor {
  return apply(sumOp, tensors, { square: true })[0];
}

const scaleByOp: Op<undefined> = {
  name: "scale_by",
  infer([x, factor]) {
    if (x.dtype !== "f32" || count(factor) !== 1 || factor.dtype !== "f32") {
      throw new RangeError(`Cannot scale ${formatType(x)} by ${formatType(factor)}: want f32 and (1) f32`);
    }
    return [x];
  },
  kernels: ({ inputs: [x, factor], outputs: [output] }, device) =>
    elementwise({
      label: "scale_by",
      inputs: [x],
      whole: { factor: { tensor: factor, type: "array<f32>" } },
      output,
      body: "a * factor[0]",
    }, device),
  cost: ({ inputs: [x] }) => ({ flops: count(x), bytes: 8 * count(x) }),
  vjp: ({ inputs: [x, factor] }, [grad]) => [scaleBy(grad!, factor), sum(multiply(grad!, x))],
};

/** x · factor, with the factor a (1) tensor. */
export function scaleBy(x: Tensor, factor: Tensor): Tensor {
  return apply(scaleByOp, [x, factor], undefined)[0];
}

const CLIP = `
@group(0) @binding(0) var<storage, read> squared: array<f32>;
@group(0) @binding(1) var<storage, read_write> clip: array<vec4f>;
@compute @workgroup_size(1)
fn main() {
  let norm = sqrt(squared[0]);
  // Bits decide, because compilers take floats for numbers: no sum of squares is above infinity but NaN.
  if ((bitcast<u32>(squared[0]) & 0x7fffffffu) >= 0x7f800000u) {
    clip[0] = vec4f(0.0, norm, 0.0, 0.0);
  } else {
    clip[0] = vec4f(min(1.0, MAX_NORM / (norm + 1e-6)), norm, 1.0, 0.0);
  }
}`;

const clipOp: Op<{ readonly maxNorm: number }> = {
  name: "clip_coefficient",
  infer([squared], { maxNorm }) {
    if (count(squared) !== 1 || squared.dtype !== "f32" || !(maxNorm > 0)) {
      throw new RangeError(`Cannot clip ${formatType(squared)} to ${maxNorm}: want (1) f32 and a norm above 0`);
    }
    return [{ shape: [4], dtype: "f32" }];
  },
  kernels: ({ inputs: [squared], outputs: [clip], attrs }) => [[{
    label: "clip_coefficient",
    wgsl: wgsl(CLIP, { MAX_NORM: { f32: attrs.maxNorm } }),
    workgroups: [1, 1, 1],
    bindings: [read(squared), write(clip)],
  }]],
  cost: () => ({ flops: 4, bytes: 20 }),
};

/**
 * What gradients are multiplied by so that their norm is at most `maxNorm`, as torch.nn.utils.clip_grad_norm_ has it.
 *
 * @param squaredNorm (1).
 * @returns (4): the coefficient min(1, maxNorm / (norm + 1e-6)) or 0 where the norm isn't finite, the norm, 1 where it is
 *   finite and else 0, 0.
 */
export function clipCoefficient(squaredNorm: Tensor, maxNorm: number): Tensor {
  return apply(clipOp, [squaredNorm], { maxNorm })[0];
}
