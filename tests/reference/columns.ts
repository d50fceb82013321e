/** Cutting and joining by columns, by plain loops: the truth for kernels/columns.ts. */

/** (rows, parts · C) → parts of (rows, C). */
export function splitReference(x: Float64Array, parts: number, rows: number): Float64Array[] {
  const columns = x.length / rows / parts;
  return Array.from({ length: parts }, (_, part) =>
    Float64Array.from({ length: rows * columns }, (_, i) => {
      const row = Math.floor(i / columns);
      return x[row * parts * columns + part * columns + i % columns];
    }));
}

/** Parts of (rows, C) → (rows, parts · C). */
export function concatReference(parts: readonly Float64Array[], rows: number): Float64Array {
  const columns = parts[0].length / rows;
  const width = parts.length * columns;
  return Float64Array.from({ length: rows * width }, (_, i) => {
    const column = i % width;
    return parts[Math.floor(column / columns)][Math.floor(i / width) * columns + column % columns];
  });
}
