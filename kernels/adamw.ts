/** AdamW (Loshchilov and Hutter 2019) over flat arrays, in place; the arithmetic of torch.optim.AdamW. It knows no schedule. */
import { apply, count, formatType, type Op, type Tensor } from "./gpu/graph.ts";
import { read, slices, write } from "./gpu/primitives.ts";
import { grid, GRID_WIDTH, wgsl } from "./gpu/wgsl.ts";

export interface AdamWOptions {
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  /** Decay of the parameters themselves, times the learning rate; no part of the gradient. */
  readonly weightDecay: number;
}

const WORKGROUP = 64;

const STEP = `
struct Uniforms { count: u32 }
@group(0) @binding(0) var<storage, read_write> parameter: array<T>;
@group(0) @binding(1) var<storage, read_write> exp_avg: array<T>;
@group(0) @binding(2) var<storage, read_write> exp_avg_sq: array<T>;
@group(0) @binding(3) var<storage, read_write> gradient: array<T>;
// learning rate, 1 - beta1^t, sqrt(1 - beta2^t)
@group(0) @binding(4) var<storage, read> hyper: array<f32>;
// coefficient, norm, 1 where the norm is finite
@group(0) @binding(5) var<storage, read> clip: array<f32>;
@group(0) @binding(6) var<uniform> u: Uniforms;
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let i = (group.x + group.y * GRID_WIDTH) * WORKGROUP + lane;
  if (i >= u.count) { return; }
  let g = gradient[i] * clip[0];
  gradient[i] = T();
  if (clip[2] == 0.0) { return; }
  let m = BETA1 * exp_avg[i] + REST1 * g;
  let v = BETA2 * exp_avg_sq[i] + REST2 * g * g;
  exp_avg[i] = m;
  exp_avg_sq[i] = v;
  let decayed = parameter[i] * (1.0 - hyper[0] * WEIGHT_DECAY);
  parameter[i] = decayed - hyper[0] / hyper[1] * m / (sqrt(v) / hyper[2] + T(EPS));
}`;

const adamwOp: Op<AdamWOptions> = {
  name: "adamw",
  infer([parameter, gradient, expAvg, expAvgSq, hyper, clip]) {
    for (const other of [gradient, expAvg, expAvgSq]) {
      if (other.shape.join() !== parameter.shape.join() || other.dtype !== "f32" || parameter.dtype !== "f32") {
        throw new RangeError(`Cannot update ${formatType(parameter)} with ${formatType(other)}: want f32 of one shape`);
      }
    }
    if (count(hyper) !== 4 || count(clip) !== 4 || hyper.dtype !== "f32" || clip.dtype !== "f32") {
      throw new RangeError(`Cannot update with ${formatType(hyper)} and ${formatType(clip)}: want (4) f32 each`);
    }
    return [parameter, expAvg, expAvgSq, gradient];
  },
  kernels({ inputs: [parameter, , , , hyper, clip], outputs, attrs }, device) {
    const text = shader(attrs);
    return [
      slices(parameter, device).map(({ rows, elements }) => {
        const lanes = elements % 4 === 0 ? 4 : 1;
        return {
          label: "adamw",
          wgsl: `alias T = ${lanes === 4 ? "vec4f" : "f32"};\n${text}`,
          workgroups: grid(Math.ceil(elements / lanes / WORKGROUP)),
          bindings: [
            ...outputs.map((tensor) => write(tensor, rows)),
            read(hyper),
            read(clip),
          ],
          uniforms: [elements / lanes],
        };
      }),
    ];
  },
  cost: ({ inputs: [parameter] }) => ({ flops: 14 * count(parameter), bytes: 32 * count(parameter) }),
  inPlace: () => ({ 0: 0, 1: 2, 2: 3, 3: 1 }),
};

function shader({ beta1, beta2, eps, weightDecay }: AdamWOptions): string {
  return wgsl(STEP, {
    WORKGROUP,
    GRID_WIDTH,
    BETA1: { f32: beta1 },
    BETA2: { f32: beta2 },
    // Rounded here: of the rounded 0.999, f32 arithmetic would make 0.0009999871.
    REST1: { f32: 1 - beta1 },
    REST2: { f32: 1 - beta2 },
    EPS: { f32: eps },
    WEIGHT_DECAY: { f32: weightDecay },
  });
}

/**
 * One step, in place on the parameter and both moments, which don't change where the gradients' norm isn't finite. The
 * gradient is cleared, in place too: nothing else reads it with less memory traffic.
 *
 * @param parameter any shape, that of gradient, expAvg and expAvgSq.
 * @param hyper (4) f32: learning rate, 1 - beta1^t, √(1 - beta2^t), 0.
 * @param clip (4) f32 as `clipCoefficient` gives it.
 * @returns parameter, expAvg, expAvgSq as they are after the step, and the gradient, all zero.
 * @throws RangeError for shapes or types that don't belong together.
 */
export function adamw(
  parameter: Tensor,
  gradient: Tensor,
  expAvg: Tensor,
  expAvgSq: Tensor,
  hyper: Tensor,
  clip: Tensor,
  options: AdamWOptions,
): readonly Tensor[] {
  const { beta1, beta2, eps, weightDecay } = options;
  return apply(adamwOp, [parameter, gradient, expAvg, expAvgSq, hyper, clip], { beta1, beta2, eps, weightDecay });
}
