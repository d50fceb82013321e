/** Matrix products with bias and accumulation, and their gradients, which are matrix products too. */
import { cast, type FloatType, isFloat } from "./cast.ts";
import { columnSum } from "./column_sum.ts";
import { apply, byteLength, type Call, formatType, type Op, type Tensor, type TensorType } from "./gpu/graph.ts";
import { matmulCandidates } from "./matmul_dispatch.ts";
import type { Form } from "./matmul_shader.ts";

export interface MatmulOptions {
  /** `a` is stored (K, M). */
  readonly transposeA?: boolean;
  /** `b` is stored (N, K), as Linear weights of many models are. */
  readonly transposeB?: boolean;
  /** (N), added to each row. */
  readonly bias?: Tensor;
  /** (M, N), a running sum: the product is added to it, in its memory. */
  readonly into?: Tensor;
}

interface Attrs {
  readonly form: Form;
  readonly bias: boolean;
  readonly accumulate: boolean;
}

/**
 * The product (M, N) of two matrices, (M, K) by (K, N) where none is transposed, each f32, bf16 or f16. Sums and the
 * result are f32. Gradients are f32 too, from an incoming one in the format of the packed operands.
 *
 * @throws RangeError for sizes that don't fit, or where both operands are transposed.
 */
export function matmul(a: Tensor, b: Tensor, options: MatmulOptions = {}): Tensor {
  const { transposeA, transposeB, bias, into } = options;
  if (transposeA && transposeB) {
    throw new RangeError(
      `Cannot multiply ${formatType(a)} by ${formatType(b)}, both transposed: transpose one at most`,
    );
  }
  const form = transposeA ? "tn" : transposeB ? "nt" : "nn";
  const attrs: Attrs = { form, bias: bias !== undefined, accumulate: into !== undefined };
  return apply(op, [a, b, ...(bias ? [bias] : []), ...(into ? [into] : [])], attrs)[0];
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
  if (attrs.bias && inputs[2].shape.join() !== `${n}`) {
    throw new RangeError(`Cannot multiply ${pair} with bias (${inputs[2].shape.join(", ")}): it must be (${n})`);
  }
  const into = attrs.accumulate ? inputs[inputs.length - 1].shape : [m, n];
  if (into.join() !== `${m},${n}`) {
    throw new RangeError(`Cannot multiply ${pair} into (${into.join(", ")}): it must be (${m}, ${n})`);
  }
  return [{ shape: [m, n], dtype: "f32" }];
}

const op: Op<Attrs> = {
  name: "matmul",
  infer,
  kernels({ inputs: [a, b, biasTensor], outputs: [c], attrs, inputs }, device) {
    const { m, n, k } = sizesOf(inputs, attrs);
    const product = { ...attrs, m, n, k, a: { tensor: a }, b: { tensor: b }, c: { tensor: c }, biasTensor };
    return matmulCandidates(product, device);
  },
  cost({ inputs, outputs: [c], attrs }) {
    const { m, n, k } = sizesOf(inputs, attrs);
    return { flops: 2 * m * n * k, bytes: [...inputs, c].reduce((sum, tensor) => sum + byteLength(tensor), 0) };
  },
  vjp(call, [grad], into) {
    if (grad === null) return call.inputs.map(() => null);
    const [da, db] = productGradients(call, cast(grad, packedFormat(call.inputs)), into);
    const { bias, accumulate } = call.attrs;
    const dbias = bias ? [columnSum(grad, into[2] ?? undefined)] : [];
    return [da, db, ...dbias, ...(accumulate ? [grad] : [])];
  },
  inPlace: ({ inputs, attrs }): Record<number, number> => attrs.accumulate ? { 0: inputs.length - 1 } : {},
};

/** The format of packed operands, f32 where none is. */
function packedFormat([a, b]: readonly TensorType[]): FloatType {
  return (a.dtype !== "f32" ? a.dtype : b.dtype) as FloatType;
}

function productGradients(call: Call<Attrs>, grad: Tensor, into: readonly (Tensor | null)[]): [Tensor, Tensor] {
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
