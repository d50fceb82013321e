/**
 * Layer norm (Ba, Kiros, Hinton 2016) and RMS norm (Zhang and Sennrich 2019), alone and fused with the residual addition
 * before them. They know rows of columns and no model. Statistics are two passes over a row, so that nothing cancels.
 */
import { columnSum } from "./column_sum.ts";
import { apply, type Call, count, formatType, type Op, type Tensor } from "./gpu/graph.ts";
import { read, write } from "./gpu/primitives.ts";
import { grid } from "./gpu/wgsl.ts";
import { type NormShape, NormText } from "./norm_shader.ts";

interface Norm {
  readonly kind: NormShape["kind"];
  readonly eps: number;
  /** Whether the first two inputs are added before. */
  readonly residual: boolean;
}

/** Rows a workgroup goes through: where loads are dear many, so that parameters are read once for all of them. */
const ROWS = { cpu: 32, gpu: 4 };

const normOp: Op<Norm> = {
  name: "norm",
  infer(inputs, { kind, residual }) {
    const [x] = inputs;
    const columns = x.shape[1];
    const parameters = inputs.slice(residual ? 2 : 1);
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
    const { kind, eps, residual } = attrs;
    const each = device.cpu ? ROWS.cpu : ROWS.gpu;
    return [[{
      label: `${kind} norm${residual ? " of a sum" : ""}`,
      wgsl: new NormText({ kind, columns }, each, device).forward(eps, residual),
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
  const { residual } = attrs;
  const x = residual ? outputs[0] : inputs[0];
  const [dsum, dy] = residual ? grads : [into[0], grads[0]];
  const statistics = outputs.at(-1)!;
  const parameters = inputs.slice(residual ? 2 : 1);
  if (dy === null) return [dsum, dsum, ...parameters.map(() => null)];
  const inputsOfBackward = [dy, x, statistics, parameters[0], ...(dsum ? [dsum] : [])];
  const [dx, ...partials] = apply(backwardOp, inputsOfBackward, attrs);
  const dparameters = partials.map((part, i) => columnSum(part, into[(residual ? 2 : 1) + i] ?? undefined));
  return residual ? [dx, dx, ...dparameters] : [dx, ...dparameters];
}

/** Rows whose contributions to the parameters' gradients are one partial sum. */
const BLOCK = 16;

/**
 * (dy, x, statistics, weight, [running sum]) → the gradient of what was normed (N, C), in the running sum's memory, and
 * those of the parameters, summed over blocks of rows, (blocks, C) each.
 */
const backwardOp: Op<Norm> = {
  name: "norm_backward",
  infer([, x], { kind }) {
    const partial = { shape: [Math.ceil(x.shape[0] / BLOCK), x.shape[1]], dtype: "f32" } as const;
    return kind === "layer" ? [x, partial, partial] : [x, partial];
  },
  kernels({ inputs, outputs, attrs: { kind } }, device) {
    const [rows, columns] = inputs[1].shape;
    return [[{
      label: `${kind} norm backward`,
      wgsl: new NormText({ kind, columns }, BLOCK, device).backward(inputs.length === 5),
      workgroups: grid(outputs[1].shape[0]),
      bindings: [...inputs.slice(0, 4).map((x) => read(x)), ...outputs.map((y) => write(y))],
      uniforms: [rows],
    }]];
  },
  cost: ({ inputs: [dy] }) => ({ flops: 20 * count(dy), bytes: 16 * count(dy) }),
  inPlace: ({ inputs }): Record<number, number> => inputs.length === 5 ? { 0: 4 } : {},
};

/** (x - mean) / √(variance + eps) · weight + bias, row by row. x (N, C); weight, bias (C). */
export function layerNorm(x: Tensor, weight: Tensor, bias: Tensor, eps: number): Tensor {
  return apply(normOp, [x, weight, bias], { kind: "layer", eps, residual: false })[0];
}

/** x / √(mean of x² + eps) · weight, row by row. x (N, C); weight (C). */
export function rmsNorm(x: Tensor, weight: Tensor, eps: number): Tensor {
  return apply(normOp, [x, weight], { kind: "rms", eps, residual: false })[0];
}

/** The sum of a branch and the residual stream, and its norm for the next reader: (N, C) each. */
export interface NormedSum {
  readonly sum: Tensor;
  readonly normed: Tensor;
}

/** x + residual and its layer norm in one kernel. */
export function residualLayerNorm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: number): NormedSum {
  const [sum, normed] = apply(normOp, [x, residual, weight, bias], { kind: "layer", eps, residual: true });
  return { sum, normed };
}

/** x + residual and its RMS norm in one kernel. */
export function residualRmsNorm(x: Tensor, residual: Tensor, weight: Tensor, eps: number): NormedSum {
  const [sum, normed] = apply(normOp, [x, residual, weight], { kind: "rms", eps, residual: true });
  return { sum, normed };
}
