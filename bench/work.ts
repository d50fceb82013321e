/** The standard work that wgpt and its peers are measured on: matrix products and training steps. It runs none of it. */

export type Form = "nn" | "nt" | "tn";

/** C (m, n) = A (m, k) B (k, n); nt: B is stored (n, k); tn: A is stored (k, m). */
export interface Product {
  readonly m: number;
  readonly k: number;
  readonly n: number;
  readonly form: Form;
}

/** A training step of a GPT-2: forward, backward and AdamW on random weights and tokens. */
export interface StepWork {
  readonly name: string;
  readonly layers: number;
  readonly width: number;
  readonly heads: number;
  readonly context: number;
  readonly vocabulary: number;
  readonly rows: number;
  /** What products with weights take. */
  readonly precision: "f32" | "bf16" | "f16";
}

/** The product on which peers meet. */
export const STANDARD_PRODUCT: Product = { m: 1024, k: 768, n: 768, form: "nn" };

const TINY = { layers: 4, width: 128, heads: 4, context: 128, vocabulary: 4096, rows: 8 };
const MINI = { layers: 4, width: 256, heads: 4, context: 256, vocabulary: 8192, rows: 8 };
const GPT2 = { layers: 12, width: 768, heads: 12, context: 256, vocabulary: 50304, rows: 2 };

export const STEPS: readonly StepWork[] = [
  { name: "tiny", ...TINY, precision: "f32" },
  { name: "mini-v2048", ...MINI, vocabulary: 2048, rows: 4, precision: "f32" },
  { name: "mini", ...MINI, precision: "f32" },
  { name: "mini bf16", ...MINI, precision: "bf16" },
  { name: "mini f16", ...MINI, precision: "f16" },
  { name: "gpt2", ...GPT2, precision: "f32" },
  { name: "gpt2 bf16", ...GPT2, precision: "bf16" },
];

/** AdamW as every contender runs it. */
export const OPTIMIZER = { learningRate: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0.1 } as const;

/** `1024x768x768`: m, k, n. */
export function sizesOf({ m, k, n }: Product): string {
  return `${m}x${k}x${n}`;
}

export function productFlops({ m, k, n }: Product): number {
  return 2 * m * k * n;
}

/** Multiplications and additions of a step: three times the forward pass's, causal attention counted by its half. */
export function stepFlops({ layers: L, width: C, context: T, vocabulary: V, rows }: StepWork): number {
  return 6 * rows * T * (L * (12 * C * C + C * T) + V * C);
}

/**
 * Operand elements: sixteenths from -1/2 to 1/2. They are bf16 numbers, and their products' sums over any k up to 2^16 are
 * exact in f32, whatever the order: a right result is right to the last bit.
 */
export function operand(elements: number, seed: number): Float32Array<ArrayBuffer> {
  return Float32Array.from({ length: elements }, (_, i) => (Math.imul(i + seed, 2654435761) >>> 8) % 17 / 16 - 0.5);
}

/** Throws an Error where the product's corners or middle aren't those of A and B. */
export function checkProduct(product: Product, a: Float32Array, b: Float32Array, c: ArrayLike<number>): void {
  const { m, k, n, form } = product;
  for (const [row, column] of [[0, 0], [m - 1, n - 1], [m >> 1, n >> 1], [0, n - 1], [m - 1, 0]]) {
    let sum = 0;
    for (let i = 0; i < k; i++) {
      sum += a[form === "tn" ? i * m + row : row * k + i] * b[form === "nt" ? column * k + i : i * n + column];
    }
    const found = c[row * n + column];
    if (found !== sum) {
      throw new Error(`Wrong product ${sizesOf(product)} ${form} at (${row}, ${column}): ${found}, not ${sum}`);
    }
  }
}

/** Deterministic token ids. */
export function tokenAt(index: number, vocabulary: number): number {
  return (Math.imul(index, 2654435761) >>> 8) % vocabulary;
}
