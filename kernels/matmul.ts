/**
 * Matrix products, with what a model does to them next: bias, residual, activation, a running sum; and their gradients,
 * which are matrix products too.
 */
import { cast, type FloatType, isFloat } from "./cast.ts";
import { columnSum } from "./column_sum.ts";
import { apply, byteLength, type Call, formatType, type Op, type Tensor, type TensorType } from "./gpu/graph.ts";
import { matmulCandidates } from "./matmul_dispatch.ts";
import type { Activation, Form } from "./matmul_shader.ts";
import { activationBackward, add } from "./pointwise.ts";

export type { Activation } from "./matmul_shader.ts";

export interface MatmulOptions {
  /** `a` is stored (K, M). */
  readonly transposeA?: boolean;
  /** `b` is stored (N, K), as Linear weights of many models are. */
  readonly transposeB?: boolean;
  /** (N), added to each row. */
  readonly bias?: Tensor;
  /** (M, N), added after bias. */
  readonly residual?: Tensor;
  /** (M, N), a running sum: the product is added to it, in its memory. */
  readonly into?: Tensor;
}

export interface ActivationOptions extends MatmulOptions {
  readonly activation: Activation;
}

interface Attrs {
  readonly form: Form;
  readonly bias: boolean;
  readonly residual: boolean;
  readonly accumulate: boolean;
  readonly activation: Activation | null;
}

/**
 * The product (M, N) of two matrices, (M, K) by (K, N) where none is transposed, each f32, bf16 or f16. Sums and the
 * result are f32. Gradients are f32 too, from an incoming one in the format of the packed operands.
 *
 * @throws RangeError for sizes that don't fit, or where both operands are transposed.
 */
export function matmul(a: Tensor, b: Tensor, options: MatmulOptions = {}): Tensor {
  return applyMatmul(a, b, options, null)[0];
}

/** The product as `matmul` gives it, and a function of it, made by one kernel; both (M, N) f32. */
export function matmulActivation(
  a: Tensor,
  b: Tensor,
  options: ActivationOptions,
): { readonly pre: Tensor; readonly activated: Tensor } {
  const [pre, activated] = applyMatmul(a, b, options, options.activation);
  return { pre, activated };
}

function applyMatmul(a: Tensor, b: Tensor, options: MatmulOptions, activation: Activation | null): readonly Tensor[] {
  const { transposeA, transposeB, bias, residual, into } = options;
  if (transposeA && transposeB) {
    throw new RangeError(
      `Cannot multiply ${formatType(a)} by ${formatType(b)}, both transposed: transpose one at most`,
    );
  }
  const form = transposeA ? "tn" : transposeB ? "nt" : "nn";
  const inputs = [a, b, ...[bias, residual, into].filter((tensor) => tensor !== undefined)];
  const has = { bias: bias !== undefined, residual: residual !== undefined, accumulate: into !== undefined };
  return apply(op, inputs, { form, ...has, activation });
}

/** The inputs after the operands. */
function extras<T>(inputs: readonly T[], { bias, residual, accumulate }: Attrs) {
  let next = 2;
  const take = (present: boolean): T | undefined => present ? inputs[next++] : undefined;
  return { bias: take(bias), residual: take(residual), into: take(accumulate) };
}

interface Sizes {
  readonly m: number;
  readonly n: number;
  readonly k: number;
}

function sizesOf([a, b]: readonly TensorType[], { form }: Attrs): Sizes & { innerOfB: number } {
  const [m, k] = form === "tn" ? [a.shape[1], a.shape[0]] : a.shape;
  const [innerOfB, n] = form === "nt" ? [b.shape[1], b.shape[0]] : b.shape;
  return { m, n, k, innerOfB };
}

function infer(inputs: readonly TensorType[], attrs: Attrs): readonly TensorType[] {
  const [a, b] = inputs;
  const names = { nn: ["", ""], nt: ["", " transposed"], tn: [" transposed", ""] }[attrs.form];
  const pair = `(${a.shape.join(", ")})${names[0]} by (${b.shape.join(", ")})${names[1]}`;
  if (a.shape.length !== 2 || b.shape.length !== 2) {
    throw new RangeError(`Cannot multiply ${pair}: both must be matrices`);
  }
  for (const { dtype } of [a, b]) {
    if (!isFloat(dtype)) throw new RangeError(`Cannot multiply ${pair}: one is ${dtype}, want f32, bf16 or f16`);
  }
  const other = inputs.slice(2).find(({ dtype }) => dtype !== "f32");
  if (other !== undefined) throw new RangeError(`Cannot add ${formatType(other)} to ${pair}: it must be f32`);
  const { m, n, k, innerOfB } = sizesOf(inputs, attrs);
  if (k !== innerOfB) throw new RangeError(`Cannot multiply ${pair}: inner sizes are ${k} and ${innerOfB}`);
  const { bias, residual, into } = extras(inputs, attrs);
  if (bias !== undefined && bias.shape.join() !== `${n}`) {
    throw new RangeError(`Cannot multiply ${pair} with bias (${bias.shape.join(", ")}): it must be (${n})`);
  }
  for (const [tensor, word] of [[residual, "plus"], [into, "into"]] as const) {
    if (tensor !== undefined && tensor.shape.join() !== `${m},${n}`) {
      throw new RangeError(`Cannot multiply ${pair} ${word} (${tensor.shape.join(", ")}): it must be (${m}, ${n})`);
    }
  }
  const result = { shape: [m, n], dtype: "f32" } as const;
  return attrs.activation === null ? [result] : [result, result];
}

const op: Op<Attrs> = {
  name: "matmul",
  infer,
  kernels({ inputs, outputs: [c, activated], attrs }, device) {
    const [a, b] = inputs;
    const { m, n, k } = sizesOf(inputs, attrs);
    const { form, activation, accumulate } = attrs;
    const { bias, residual } = extras(inputs, attrs);
    const ending = activation === null ? undefined : { activation, tensor: activated };
    const operands = { a: { tensor: a }, b: { tensor: b }, c: { tensor: c } };
    return matmulCandidates({ form, m, n, k, ...operands, bias, residual, accumulate, activated: ending }, device);
  },
  cost({ inputs, outputs, attrs }) {
    const { m, n, k } = sizesOf(inputs, attrs);
    const bytes = [...inputs, ...outputs].reduce((sum, tensor) => sum + byteLength(tensor), 0);
    return { flops: 2 * m * n * k, bytes };
  },
  vjp(call, grads, into) {
    const grad = productGradient(call, grads);
    if (grad === null) return call.inputs.map(() => null);
    const [da, db] = operandGradients(call, cast(grad, packedFormat(call.inputs)), into);
    const { bias, residual, accumulate } = call.attrs;
    const dbias = bias ? [columnSum(grad, into[2] ?? undefined)] : [];
    return [da, db, ...dbias, ...(residual ? [grad] : []), ...(accumulate ? [grad] : [])];
  },
  inPlace: ({ inputs, attrs }): Record<number, number> => attrs.accumulate ? { 0: inputs.length - 1 } : {},
};

/** The gradient of the product itself, from those of the product and of its activation. */
function productGradient({ outputs: [pre], attrs }: Call<Attrs>, grads: readonly (Tensor | null)[]): Tensor | null {
  const [direct, ofActivated = null] = grads;
  if (ofActivated === null) return direct;
  const through = activationBackward(pre, ofActivated, attrs.activation!);
  return direct === null ? through : add(direct, through);
}

/** The format of packed operands, f32 where none is. */
function packedFormat([a, b]: readonly TensorType[]): FloatType {
  return (a.dtype !== "f32" ? a.dtype : b.dtype) as FloatType;
}

function operandGradients(call: Call<Attrs>, grad: Tensor, into: readonly (Tensor | null)[]): [Tensor, Tensor] {
  const [a, b] = call.inputs;
  const [intoA, intoB] = [into[0] ?? undefined, into[1] ?? undefined];
  switch (call.attrs.form) {
    case "nn": // C = A B: dA = dC Bᵀ, dB = Aᵀ dC
      return [
        matmul(grad, b, { transposeB: true, into: intoA }),
        matmul(a, grad, { transposeA: true, into: intoB }),
      ];
    case "nt": // C = A Bᵀ: dA = dC B, dB = dCᵀ A
      return [matmul(grad, b, { into: intoA }), matmul(grad, a, { transposeA: true, into: intoB })];
    case "tn": // C = Aᵀ B: dA = B dCᵀ, dB = A dC
      return [matmul(b, grad, { transposeB: true, into: intoA }), matmul(a, grad, { into: intoB })];
  }
}
