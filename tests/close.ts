/** Compares numbers with what they should be; a failure names the worst element and how much of its allowance it used. */

export interface Tolerance {
  /** Allowed whatever the size of the expected value. */
  readonly atol: number;
  /** Allowed in proportion to the expected value. */
  readonly rtol: number;
}

/** Throws where any |actual - expected| passes atol + rtol·|expected|, or lengths differ. Returns the share of the allowance used. */
export function assertClose(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  { atol, rtol }: Tolerance,
  label = "values",
): number {
  if (actual.length !== expected.length) {
    throw new Error(`${label}: ${actual.length} elements, expected ${expected.length}`);
  }
  let worst = 0;
  let at = -1;
  for (let i = 0; i < expected.length; i++) {
    if (Object.is(actual[i], expected[i])) continue;
    const difference = Math.abs(actual[i] - expected[i]);
    const used = difference === 0 ? 0 : difference / (atol + rtol * Math.abs(expected[i]));
    if (!(used <= worst)) {
      worst = used;
      at = i;
      if (Number.isNaN(used)) worst = Infinity;
    }
  }
  if (!(worst <= 1)) {
    throw new Error(
      `${label}: element ${at} of ${expected.length} is ${actual[at]}, expected ${expected[at]} ` +
        `(${worst.toFixed(2)} times its allowance)`,
    );
  }
  return worst;
}
