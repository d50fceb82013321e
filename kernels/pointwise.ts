/** Operations on each element by itself: sums, products, activations, dropout. They know shapes only to compare them. */
import { elementwise } from "./elementwise.ts";
import activations from "./activations.wgsl" with { type: "text" };
import { apply, type Call, count, formatType, type Op, type Tensor, type TensorType } from "./gpu/graph.ts";
import { f32 } from "./gpu/wgsl.ts";
import type { Activation } from "./matmul_shader.ts";
import { PHILOX_WGSL } from "./random.ts";

/** GELU by its tanh form (GPT-2's own) or by the error function (Hendrycks and Gimpel 2016). */
export type GeluForm = "tanh" | "erf";

/** A function of one element of each input. */
interface Pointwise<A> {
  readonly name: string;
  readonly flops: number;
  readonly functions?: string;
  readonly body: (attrs: A) => string;
  readonly vjp?: Op<A>["vjp"];
}

/** An op of tensors of one shape. */
function pointwiseOp<A>({ name, flops, functions, body, vjp }: Pointwise<A>): Op<A> {
  return {
    name,
    infer(inputs) {
      for (const input of inputs) requireAlike(name, inputs[0], input);
      return [inputs[0]];
    },
    kernels: ({ inputs, outputs: [output], attrs }, device) =>
      elementwise({ label: name, inputs, output, functions, body: body(attrs) }, device),
    cost: ({ inputs }) => ({ flops: flops * count(inputs[0]), bytes: 4 * (inputs.length + 1) * count(inputs[0]) }),
    vjp,
  };
}

function requireAlike(name: string, a: TensorType, b: TensorType): void {
  if (a.dtype !== "f32" || b.dtype !== "f32" || a.shape.join() !== b.shape.join()) {
    throw new RangeError(`Cannot ${name} ${formatType(a)} and ${formatType(b)}: want f32 of one shape`);
  }
}

const addOp = pointwiseOp<undefined>({ name: "add", flops: 1, body: () => "a + b", vjp: (_, [grad]) => [grad, grad] });

/** a + b, of one shape. */
export function add(a: Tensor, b: Tensor): Tensor {
  return apply(addOp, [a, b], undefined)[0];
}

const multiplyOp = pointwiseOp<undefined>({
  name: "multiply",
  flops: 1,
  body: () => "a * b",
  vjp: ({ inputs: [a, b] }, [grad]) => [multiply(grad!, b), multiply(grad!, a)],
});

/** a · b, element by element. */
export function multiply(a: Tensor, b: Tensor): Tensor {
  return apply(multiplyOp, [a, b], undefined)[0];
}

const scaleOp = pointwiseOp<{ readonly factor: number }>({
  name: "scale",
  flops: 1,
  body: ({ factor }) => `${f32(factor)} * a`,
  vjp: ({ attrs }, [grad]) => [scale(grad!, attrs.factor)],
});

/** factor · x, with a factor that never changes; for one that does see `scaleBy` in reduce.ts. */
export function scale(x: Tensor, factor: number): Tensor {
  return apply(scaleOp, [x], { factor })[0];
}

const geluBackwardOp = pointwiseOp<{ readonly form: GeluForm }>({
  name: "gelu_backward",
  flops: 20,
  functions: activations,
  body: ({ form }) => `b * gelu_${form}_slope(a)`,
});

const geluOp = pointwiseOp<{ readonly form: GeluForm }>({
  name: "gelu",
  flops: 12,
  functions: activations,
  body: ({ form }) => `gelu_${form}(a)`,
  vjp: ({ inputs: [x], attrs }, [grad]) => [apply(geluBackwardOp, [x, grad!], attrs)[0]],
});

/** GELU in either form; absolute error about 3e-7 where |x| < 4. */
export function gelu(x: Tensor, form: GeluForm): Tensor {
  return apply(geluOp, [x], { form })[0];
}

const siluBackwardOp = pointwiseOp<undefined>({
  name: "silu_backward",
  flops: 8,
  functions: activations,
  body: () => "b * silu_slope(a)",
});

const siluOp = pointwiseOp<undefined>({
  name: "silu",
  flops: 5,
  functions: activations,
  body: () => "silu(a)",
  vjp: ({ inputs: [x] }, [grad]) => [apply(siluBackwardOp, [x, grad!], undefined)[0]],
});

/** x · sigmoid(x). */
export function silu(x: Tensor): Tensor {
  return apply(siluOp, [x], undefined)[0];
}

/** What reaches x of a gradient of its activation. */
export function activationBackward(x: Tensor, grad: Tensor, activation: Activation): Tensor {
  if (activation === "silu") return apply(siluBackwardOp, [x, grad], undefined)[0];
  return apply(geluBackwardOp, [x, grad], { form: activation === "gelu_erf" ? "erf" : "tanh" })[0];
}

/** What is dropped where. */
export interface Dropout {
  readonly rate: number;
  /** A constant that keeps the masks of different uses apart. */
  readonly site: number;
}

/** WGSL `fn kept(row: u32, quad: u32) -> vec4f`: the factors of a row's four columns; reads the storage `counter`. */
export function keptText({ rate, site }: Dropout): string {
  return `${PHILOX_WGSL}
fn kept(row: u32, quad: u32) -> vec4f {
  let bits = philox(vec4u(quad, counter[2] + row, ${site}u, 0u), vec2u(counter[0], counter[1]));
  let drawn = vec4f(uniform_of(bits.x), uniform_of(bits.y), uniform_of(bits.z), uniform_of(bits.w));
  return select(vec4f(0.0), vec4f(${f32(1 / (1 - rate))}), drawn >= vec4f(${f32(rate)}));
}`;
}

/** @throws RangeError for what is no counter or no rate. */
export function checkDropout(counter: TensorType, rate: number): void {
  if (counter.dtype !== "u32" || count(counter) !== 4) {
    throw new RangeError(`Cannot drop with counter ${formatType(counter)}: want (4) u32`);
  }
  if (!(rate >= 0 && rate < 1)) throw new RangeError(`Cannot drop at rate ${rate}: want 0 ≤ rate < 1`);
}

const dropoutOp: Op<Dropout> = {
  name: "dropout",
  infer([x, counter], { rate }) {
    if (x.dtype !== "f32" || x.shape.length !== 2) {
      throw new RangeError(`Cannot drop from ${formatType(x)}: want (N, C) f32`);
    }
    checkDropout(counter, rate);
    return [x];
  },
  kernels({ inputs: [x, counter], outputs: [output], attrs: { rate, site } }, device) {
    const columns = x.shape[1];
    const quads = Math.ceil(columns / 4);
    const functions = keptText({ rate, site });
    const body = columns % 4 === 0
      ? `a * kept(i / ${quads}u, i % ${quads}u)`
      : `a * kept(i / ${columns}u, i % ${columns}u / 4u)[i % ${columns}u % 4u]`;
    const whole = { counter: { tensor: counter, type: "array<u32>" } };
    return elementwise({ label: "dropout", inputs: [x], whole, output, functions, body }, device);
  },
  cost: ({ inputs: [x] }) => ({ flops: 30 * count(x), bytes: 8 * count(x) }),
  vjp: ({ inputs: [, counter], attrs }: Call<Dropout>, [grad]) => [
    attrs.rate === 0 ? grad : dropout(grad!, attrs.rate, attrs.site, counter),
    null,
  ],
};

/**
 * Zeroes elements at `rate` and scales the others by 1/(1 - rate) (Srivastava et al. 2014). The mask is never stored: it is
 * Philox of the counter (column / 4, row, site, 0) under the key (seed, update), and made again in the backward pass.
 *
 * @param x (N, C).
 * @param counter (4) u32: seed, update, index of the first row within the whole update, 0.
 */
export function dropout(x: Tensor, rate: number, site: number, counter: Tensor): Tensor {
  return apply(dropoutOp, [x, counter], { rate, site })[0];
}
