/** Activations and dropout masks in f64: the truth for kernels/pointwise.ts. */
import { philoxReference } from "./random.ts";

/** 1 - erf(x) for x ≥ 0: the series of erf below 2, the continued fraction of erfc from there. */
function complementaryError(x: number): number {
  if (x < 2) {
    let term = x;
    let sum = x;
    for (let n = 1; n < 60; n++) {
      term *= -x * x / n;
      sum += term / (2 * n + 1);
    }
    return 1 - 2 / Math.sqrt(Math.PI) * sum;
  }
  let fraction = x;
  for (let n = 80; n > 0; n--) fraction = x + n / 2 / fraction;
  return Math.exp(-x * x) / Math.sqrt(Math.PI) / fraction;
}

/** Probability that a standard normal number is below x. */
export function normalBelow(x: number): number {
  const tail = complementaryError(Math.abs(x) / Math.SQRT2) / 2;
  return x > 0 ? 1 - tail : tail;
}

export function gelu(x: number, form: "tanh" | "erf"): number {
  if (form === "erf") return x * normalBelow(x);
  return 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
}

export function silu(x: number): number {
  return x / (1 + Math.exp(-x));
}

/** What each element of (rows, columns) is multiplied by: 0, or 1 / (1 - rate). */
export function dropoutFactors(
  [rows, columns]: readonly number[],
  rate: number,
  site: number,
  [seed, update, firstRow]: ArrayLike<number> & Iterable<number>,
): Float64Array {
  return Float64Array.from({ length: rows * columns }, (_, i) => {
    const column = i % columns;
    const counter = [Math.floor(column / 4), (firstRow + Math.floor(i / columns)) % 2 ** 32, site, 0];
    const drawn = Math.floor(philoxReference(counter, [seed, update])[column % 4] / 256) / 2 ** 24;
    return drawn >= Math.fround(rate) ? 1 / (1 - rate) : 0;
  });
}
