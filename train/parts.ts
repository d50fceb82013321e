/**
 * ZeRO-1 (Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models"): which rank keeps
 * the moments of, and updates, which part of the flat parameters. Pure; it knows no device.
 */
import type { Entry, Layout, Range } from "../kernels/gpu/layout.ts";

/** Elements of a flat range of parameters, and in the same place of gradients and moments. */
export interface Part {
  /** Its rank. */
  readonly rank: number;
  /** Number of the range. */
  readonly range: number;
  readonly from: number;
  readonly elements: number;
  readonly decay: boolean;
}

/** All parts, from one rank's point of view, back to back by range. */
export interface Sharded {
  readonly all: readonly Part[];
  readonly own: readonly Part[];
  readonly others: readonly Part[];
}

/** A part begins where a buffer may be bound: at a multiple of 256 bytes. */
const ALIGNMENT = 64;

/** Divides every range evenly. A range of few elements may leave ranks without. */
export function shardedParts(ranges: readonly Range[], { rank, size }: { rank: number; size: number }): Sharded {
  const all = ranges.flatMap(({ elements, decay }, range): Part[] => {
    const border = (rank: number) =>
      rank === size ? elements : Math.floor(rank * elements / size / ALIGNMENT) * ALIGNMENT;
    return Array.from({ length: size }, (_, rank) => {
      return { rank, range, from: border(rank), elements: border(rank + 1) - border(rank), decay };
    }).filter(({ elements }) => elements > 0);
  });
  return { all, own: all.filter((part) => part.rank === rank), others: all.filter((part) => part.rank !== rank) };
}

/** Moments of parts, as variables. */
export function partEntries(parts: readonly Part[], prefix: string): Entry[] {
  return parts.map((part) => ({
    name: prefix + nameOf(part),
    shape: [part.elements],
    dtype: "f32",
    decay: part.decay,
  }));
}

/** Parts of a kind, as variables: gradients and parameters by views of the ranges, moments by their own. */
export function variablesOf(parts: readonly Part[], kind: string): Range[] {
  return parts.map((part) => ({ name: `${kind}/${nameOf(part)}`, elements: part.elements, decay: part.decay }));
}

/** Names parts of parameters and gradients in the layout. */
export function viewParts(layout: Layout, { all }: Sharded): void {
  for (const part of all) {
    for (const kind of ["parameter", "gradient"]) {
      const { buffer, offset } = layout.get(layout.ranges(kind)[part.range].name)!;
      layout.view(`${kind}/${nameOf(part)}`, { buffer, offset: offset + 4 * part.from, elements: part.elements });
    }
  }
}

/** A part's bytes in its range's buffer. */
export function locate(layout: Layout, { range, from, elements }: Part) {
  const { buffer, offset } = layout.get(layout.ranges("parameter")[range].name)!;
  return { buffer, from: offset + 4 * from, to: offset + 4 * (from + elements) };
}

function nameOf({ rank, range }: Part): string {
  return `part ${range} of rank ${rank}`;
}
