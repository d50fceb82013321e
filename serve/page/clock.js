// @ts-check
/** How fast tokens come. It knows no page. */

/** Counts tokens from the moment it is made; says how fast they come. */
export function createClock() {
  const begin = performance.now();
  let first = 0;
  let last = 0;
  let count = 0;
  return {
    /** @param {number} more */
    count(more) {
      last = performance.now();
      if (count === 0) first = last;
      count += more;
    },
    get total() {
      return count;
    },
    toString() {
      if (count === 0) return "0 tokens";
      const rate = count > 1 && last > first ? ` · ${(1000 * (count - 1) / (last - first)).toFixed(1)} tokens/s` : "";
      const wait = ` · first after ${((first - begin) / 1000).toFixed(2)} s`;
      return `${count} token${count === 1 ? "" : "s"}${rate}${wait}`;
    },
  };
}
