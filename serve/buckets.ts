/** Sizes of programs: few, so that few are compiled, and none much larger than what it takes. */

/** The smallest power of two that holds `count`, or `most` where that is less. */
export function bucketOf(count: number, most: number): number {
  return Math.min(2 ** Math.ceil(Math.log2(count)), most);
}

/** All buckets up to `most`. */
export function buckets(most: number): number[] {
  const powers = Array.from({ length: Math.ceil(Math.log2(most)) }, (_, i) => 2 ** i);
  return [...powers, most];
}
