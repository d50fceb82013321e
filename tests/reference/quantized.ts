/** What quantized weights stand for, one by one: the truth for kernels/quantize.ts and kernels/quantized.ts. */
import type { Along, IntegerFormat } from "../../kernels/quantize.ts";

/** The integer of element (row, column) of packed rows. */
export function integerAt(values: Uint32Array, row: number, column: number, columns: number, format: IntegerFormat) {
  const bits = format === "int8" ? 8 : 4;
  const words = Math.ceil(columns * bits / 32);
  const word = values[row * words + Math.floor(column * bits / 32)];
  const leading = word << (32 - bits - column * bits % 32);
  return leading >> (32 - bits);
}

/** The scale of element (row, column) of a matrix. */
export function scaleAt(scales: Float32Array, row: number, column: number, columns: number, along: Along): number {
  if (along === "columns") return scales[Math.floor(row / 32) * columns + column];
  const groups = Math.ceil(columns / 32);
  return scales[(Math.floor(row / 16) * groups + Math.floor(column / 32)) * 16 + row % 16];
}

/** All elements of a quantized (rows, columns) matrix. */
export function dequantize(
  { values, scales }: { readonly values: Uint32Array; readonly scales: Float32Array },
  [rows, columns]: readonly [number, number],
  format: IntegerFormat,
  along: Along,
): Float64Array {
  return Float64Array.from({ length: rows * columns }, (_, i) => {
    const [row, column] = [Math.floor(i / columns), i % columns];
    return integerAt(values, row, column, columns, format) * scaleAt(scales, row, column, columns, along);
  });
}
