/** Indices as real inputs have them, for measuring kernels whose time depends on them. It knows no kernel. */

/** Ids below `limit`, scattered, with a few equal ones. */
export function exampleIds(length: number, limit: number): Uint32Array {
  return Uint32Array.from({ length }, (_, i) => (Math.imul(i, 2654435761) >>> 8) % limit);
}

/** The first row of each row's document, all of them `longest` rows long. */
export function exampleStarts(rows: number, longest: number): Uint32Array {
  return Uint32Array.from({ length: rows }, (_, row) => row - row % longest);
}

/** A block table, and rows of each sequence side by side, in the middle of what a sequence can hold. */
export function examplePages(rows: number, sequences: number, blocks: number, blockSize: number, cacheBlocks: number) {
  return {
    blockTable: Uint32Array.from({ length: sequences * blocks }, (_, block) => block % cacheBlocks),
    sequences: Uint32Array.from({ length: rows }, (_, row) => Math.floor(row * sequences / rows)),
    positions: new Uint32Array(rows).fill(Math.floor(blocks * blockSize / 2)),
  };
}
