/**
 * Dynamic loss scaling (Micikevicius et al. 2018, "Mixed Precision Training"), decided on the GPU, so that no step waits
 * for the host. It knows no model and no data.
 */
import { apply, count, formatType, type Op, type Tensor } from "./gpu/graph.ts";
import { read, write } from "./gpu/primitives.ts";
import { wgsl } from "./gpu/wgsl.ts";

/** The first scale, and how many good updates in a row double it; those of torch.amp.GradScaler. */
export const LOSS_SCALE = { first: 65536, growthInterval: 2000 } as const;

export interface LossScaleOptions {
  /** Largest norm of the unscaled gradients. */
  readonly maxNorm: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly growthInterval: number;
}

const KERNEL = `
@group(0) @binding(0) var<storage, read> squared: array<f32>;
@group(0) @binding(1) var<storage, read> scaled_loss: array<f32>;
@group(0) @binding(2) var<storage, read> learning_rate: array<f32>;
@group(0) @binding(3) var<storage, read_write> loss: array<f32>;
@group(0) @binding(4) var<storage, read_write> clip: array<vec4f>;
@group(0) @binding(5) var<storage, read_write> hyper: array<vec4f>;
@group(0) @binding(6) var<storage, read_write> scale: array<f32>;
// good updates in a row, applied, left out
@group(0) @binding(7) var<storage, read_write> counts: array<vec4f>;

// 1 - exp(x) for x <= 0, without the cancellation near 0.
fn rest_of_exp(x: f32) -> f32 {
  if (x < -0.5) { return 1.0 - exp(x); }
  var series = 1.0;
  for (var n = 9u; n > 1u; n--) { series = 1.0 + series * x / f32(n); }
  return -x * series;
}

@compute @workgroup_size(1)
fn main() {
  let s = scale[0];
  let old = counts[0];
  let norm = sqrt(squared[0]) / s;
  let applied = old.y + 1.0;
  loss[0] = scaled_loss[0] / s;
  hyper[0] = vec4f(learning_rate[0], rest_of_exp(applied * LOG_BETA1), sqrt(rest_of_exp(applied * LOG_BETA2)), 0.0);
  // Bits decide, because compilers take floats for numbers: no sum of squares is above infinity but NaN.
  if ((bitcast<u32>(squared[0]) & 0x7fffffffu) >= 0x7f800000u) {
    clip[0] = vec4f(0.0, norm, 0.0, 0.0);
    scale[0] = max(1.0, s / 2.0);
    counts[0] = vec4f(0.0, old.y, old.z + 1.0, 0.0);
  } else {
    clip[0] = vec4f(min(1.0, MAX_NORM / (norm + 1e-6)) / s, norm, 1.0, 0.0);
    let grows = old.x + 1.0 >= GROWTH_INTERVAL;
    scale[0] = select(s, s * 2.0, grows);
    counts[0] = vec4f(select(old.x + 1.0, 0.0, grows), applied, old.z, 0.0);
  }
}`;

const lossScaleOp: Op<LossScaleOptions> = {
  name: "loss_scale",
  infer(inputs, { maxNorm, growthInterval }) {
    const sizes = [1, 1, 1, 1, 4];
    if (inputs.some((input, i) => input.dtype !== "f32" || count(input) !== sizes[i])) {
      throw new RangeError(`Cannot unscale with ${inputs.map(formatType).join(", ")}: want f32 of ${sizes.join(", ")}`);
    }
    if (!(maxNorm > 0 && growthInterval >= 1)) {
      throw new RangeError(
        `Cannot unscale to norm ${maxNorm}, growing after ${growthInterval}: want above 0, at least 1`,
      );
    }
    const four = { shape: [4], dtype: "f32" } as const;
    return [{ shape: [1], dtype: "f32" }, four, four, inputs[3], inputs[4]];
  },
  kernels: ({ inputs, outputs, attrs: { maxNorm, beta1, beta2, growthInterval } }) => [[{
    label: "loss_scale",
    wgsl: wgsl(KERNEL, {
      MAX_NORM: { f32: maxNorm },
      LOG_BETA1: { f32: logarithm(beta1) },
      LOG_BETA2: { f32: logarithm(beta2) },
      GROWTH_INTERVAL: { f32: growthInterval },
    }),
    workgroups: [1, 1, 1],
    bindings: [...inputs.slice(0, 3).map((tensor) => read(tensor)), ...outputs.map((tensor) => write(tensor))],
  }]],
  cost: () => ({ flops: 60, bytes: 100 }),
  inPlace: () => ({ 3: 3, 4: 4 }),
};

/** ln β, and of 0 one whose powers are 0 in f32. */
function logarithm(beta: number): number {
  return Math.max(Math.log(beta), -200);
}

export interface Unscaled {
  /** (1) */
  readonly loss: Tensor;
  /** (4), as `clipCoefficient` gives it, of the unscaled gradients; its coefficient also divides by the scale. */
  readonly clip: Tensor;
  /** (4), as `adamw` takes it; updates left out don't count. */
  readonly hyper: Tensor;
  /** The next update's scale and counts. */
  readonly scale: Tensor;
  readonly counts: Tensor;
}

/**
 * What an update needs of gradients and a loss that were multiplied by `scale`; then halves the scale where a gradient isn't
 * finite (that update is left out), and doubles it after `growthInterval` good updates in a row. Scale and counts are
 * changed in place.
 *
 * @param squaredNorm (1) Σ of the scaled gradients' squares.
 * @param loss (1), scaled.
 * @param learningRate (1).
 * @param scale (1).
 * @param counts (4): good updates in a row, updates applied, updates left out, 0.
 */
export function unscale(
  squaredNorm: Tensor,
  loss: Tensor,
  learningRate: Tensor,
  scale: Tensor,
  counts: Tensor,
  { maxNorm, beta1, beta2, growthInterval }: LossScaleOptions,
): Unscaled {
  const attrs = { maxNorm, beta1, beta2, growthInterval };
  const outputs = apply(lossScaleOp, [squaredNorm, loss, learningRate, scale, counts], attrs);
  return { loss: outputs[0], clip: outputs[1], hyper: outputs[2], scale: outputs[3], counts: outputs[4] };
}
