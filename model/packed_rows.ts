/** Matrices in the store's packed halves, to and from f32, on the host: two a u32, each row padded. It knows no store. */
import type { FloatType } from "../kernels/cast.ts";
import { type FloatFormat, fromF32, toF32 } from "./float_formats.ts";

const FORMATS: Readonly<Record<FloatType, FloatFormat>> = { f32: "F32", bf16: "BF16", f16: "F16" };

/** Values in rows of `columns`, in a tensor's memory layout; f32 comes back as a view of the same memory. */
export function packRows(values: Float32Array, columns: number, dtype: FloatType): Uint8Array {
  const packed = fromF32(values, FORMATS[dtype]);
  if (dtype === "f32" || columns % 2 === 0) return packed;
  const rows = values.length / columns;
  const padded = new Uint8Array(rows * (2 * columns + 2));
  for (let row = 0; row < rows; row++) {
    padded.set(packed.subarray(row * 2 * columns, (row + 1) * 2 * columns), row * (2 * columns + 2));
  }
  return padded;
}

/** The f32 of a tensor's memory without the rows' padding; f32 comes back as a view of the same memory. */
export function unpackRows(buffer: ArrayBuffer, columns: number, dtype: FloatType): Float32Array {
  const all = toF32({ dtype: FORMATS[dtype], data: new Uint8Array(buffer) });
  if (dtype === "f32" || columns % 2 === 0) return all;
  const rows = all.length / (columns + 1);
  const values = new Float32Array(rows * columns);
  for (let row = 0; row < rows; row++) {
    values.set(all.subarray(row * (columns + 1), row * (columns + 1) + columns), row * columns);
  }
  return values;
}
