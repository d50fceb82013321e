/**
 * Layer norm (Ba, Kiros, Hinton 2016) and RMS norm (Zhang and Sennrich 2019), alone and fused with the residual addition
 * before them. They know rows of columns and no model. Statistics are two passes over a row, so that nothing cancels.
 */
import { columnSum } from "./column_sum.ts";
import { apply, type Call, count, formatType, type Op, type Tensor } from "./gpu/graph.ts";
import { read, write } from "./gpu/primitives.ts";
import { grid } from "./gpu/wgsl.ts";
import { type NormShape, NormText } from "./norm_shader.ts";
import { checkDropout, type Dropout, dropout } from "./pointwise.ts";

interface Norm {
  readonly kind: NormShape["kind"];
  readonly eps: number;
  /** Whether the first two inputs are added before. */
  readonly residual: boolean;
  /** What is dropped from the first input before that; the counter is then the last input. */
  readonly dropout: Dropout | null;
}

/** weight, and bias where there is one. */
function parametersOf<T>(inputs: readonly T[], { residual, dropout }: Norm): readonly T[] {
  return inputs.slice(residual ? 2 : 1, dropout === null ? undefined : -1);
}

/** Rows a workgroup goes through: where loads are dear many, so that parameters are read once for all of them. */
const ROWS = { cpu: 32, gpu: 4 };

const normOp: Op<Norm> = {
  name: "norm",
  infer(inputs, attrs) {
    const { kind, residual, dropout } = attrs;
    const [x] = inputs;
    const columns = x.shape[1];
    const parameters = parametersOf(inputs, attrs);
    if (dropout !== null) checkDropout(inputs.at(-1)!, dropout.rate);
    const alike = !residual || inputs[1].shape.join() === x.shape.join();
    if (x.shape.length !== 2 || !alike || parameters.some(({ shape }) => shape.join() !== `${columns}`)) {
      throw new RangeError(
        `Cannot norm ${inputs.map(formatType).join(", ")} (${kind}): want (N, C) and parameters (C)`,
      );
    }
    const statistics = { shape: [x.shape[0], 2], dtype: "f32" } as const;
    return residual ? [x, x, statistics] : [x, statistics];
  },
  kernels({ inputs, outputs, attrs }, device) {
    const [rows, columns] = inputs[0].shape;
    const { kind, eps, residual, dropout } = attrs;
    const each = device.cpu ? ROWS.cpu : ROWS.gpu;
    return [[{
      label: `${kind} norm${residual ? " of a sum" : ""}${dropout ? " with dropout" : ""}`,
      wgsl: new NormText({ kind, columns, dropout }, each, device).forward(eps, residual),
      workgroups: grid(Math.ceil(rows / each)),
      bindings: [...inputs.map((x) => read(x)), ...outputs.map((y) => write(y))],
      uniforms: [rows],
    }]];
  },
  cost: ({ inputs: [x], attrs }) => ({ flops: 8 * count(x), bytes: (attrs.residual ? 16 : 8) * count(x) }),
  vjp: (call, grads, into) => normVjp(call, grads, into),
};

function normVjp(
  { inputs, outputs, attrs }: Call<Norm>,
  grads: readonly (Tensor | null)[],
  into: readonly (Tensor | null)[],
): (Tensor | null)[] {
  const { residual, dropout: dropped } = attrs;
  const x = residual ? outputs[0] : inputs[0];
  const [dsum, dy] = residual ? grads : [into[0], grads[0]];
  const statistics = outputs.at(-1)!;
  const parameters = parametersOf(inputs, attrs);
  const counters = dropped === null ? [] : [inputs.at(-1)!];
  if (dy === null) {
    const dbranch = dropped === null || dsum === null ? dsum : dropout(dsum, dropped.rate, dropped.site, counters[0]);
    return [dbranch, dsum, ...parameters.map(() => null)];
  }
  const inputsOfBackward = [dy, x, statistics, parameters[0], ...counters, ...(dsum ? [dsum] : [])];
  const results = apply(backwardOp, inputsOfBackward, attrs);
  const [dx, ...partials] = results.slice(0, 1 + parameters.length);
  const dparameters = partials.map((part, i) => columnSum(part, into[(residual ? 2 : 1) + i] ?? undefined));
  return residual ? [dropped === null ? dx : results.at(-1)!, dx, ...dparameters] : [dx, ...dparameters];
}

/** Rows whose contributions to the parameters' gradients are one partial sum. */
const BLOCK = 16;

/** Inputs of the backward pass without a running sum. */
function backwardInputs({ dropout }: Norm): number {
  return dropout === null ? 4 : 5;
}

/**
 * (dy, x, statistics, weight, [counter], [running sum]) → the gradient of what was normed (N, C), in the running sum's
 * memory, those of the parameters, summed over blocks of rows, (blocks, C) each, and with dropout that of the branch.
 */
const backwardOp: Op<Norm> = {
  name: "norm_backward",
  infer([, x], { kind, dropout }) {
    const partial = { shape: [Math.ceil(x.shape[0] / BLOCK), x.shape[1]], dtype: "f32" } as const;
    return [x, partial, ...(kind === "layer" ? [partial] : []), ...(dropout === null ? [] : [x])];
  },
  kernels({ inputs, outputs, attrs }, device) {
    const { kind, dropout } = attrs;
    const [rows, columns] = inputs[1].shape;
    const alone = backwardInputs(attrs);
    return [[{
      label: `${kind} norm backward${dropout ? " with dropout" : ""}`,
      wgsl: new NormText({ kind, columns, dropout }, BLOCK, device).backward(inputs.length > alone),
      workgroups: grid(outputs[1].shape[0]),
      bindings: [...inputs.slice(0, alone).map((x) => read(x)), ...outputs.map((y) => write(y))],
      uniforms: [rows],
    }]];
  },
  cost: ({ inputs: [dy], attrs: { dropout } }) => {
    return { flops: (dropout ? 50 : 20) * count(dy), bytes: (dropout ? 20 : 16) * count(dy) };
  },
  inPlace: ({ inputs, attrs }): Record<number, number> => {
    const alone = backwardInputs(attrs);
    return inputs.length > alone ? { 0: alone } : {};
  },
};

/** (x - mean) / √(variance + eps) · weight + bias, row by row. x (N, C); weight, bias (C). */
export function layerNorm(x: Tensor, weight: Tensor, bias: Tensor, eps: number): Tensor {
  return apply(normOp, [x, weight, bias], { kind: "layer", eps, residual: false, dropout: null })[0];
}

/** x / √(mean of x² + eps) · weight, row by row. x (N, C); weight (C). */
export function rmsNorm(x: Tensor, weight: Tensor, eps: number): Tensor {
  return apply(normOp, [x, weight], { kind: "rms", eps, residual: false, dropout: null })[0];
}

/** The sum of a branch and the residual stream, and its norm for the next reader: (N, C) each. */
export interface NormedSum {
  readonly sum: Tensor;
  readonly normed: Tensor;
}

/** What is dropped from the branch before the addition, as `dropout` would. */
export interface DroppedBranch extends Dropout {
  /** (4) u32 */
  readonly counter: Tensor;
}

/** x + residual and its layer norm in one kernel; with `dropped`, dropout(x) + residual. */
export function residualLayerNorm(
  x: Tensor,
  residual: Tensor,
  weight: Tensor,
  bias: Tensor,
  eps: number,
  dropped?: DroppedBranch,
): NormedSum {
  return residualNorm("layer", [x, residual, weight, bias], eps, dropped);
}

/** x + residual and its RMS norm in one kernel; with `dropped`, dropout(x) + residual. */
export function residualRmsNorm(
  x: Tensor,
  residual: Tensor,
  weight: Tensor,
  eps: number,
  dropped?: DroppedBranch,
): NormedSum {
  return residualNorm("rms", [x, residual, weight], eps, dropped);
}

function residualNorm(kind: Norm["kind"], inputs: readonly Tensor[], eps: number, dropped?: DroppedBranch): NormedSum {
  const dropout = dropped && { rate: dropped.rate, site: dropped.site };
  const all = dropped ? [...inputs, dropped.counter] : inputs;
  const [sum, normed] = apply(normOp, all, { kind, eps, residual: true, dropout: dropout ?? null });
  return { sum, normed };
}
