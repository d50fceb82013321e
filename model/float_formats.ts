/** Numbers in the formats that weights are stored in, to and from f32. It knows no files. */

export type FloatFormat = "F32" | "F16" | "BF16";

/**
 * Values as f32. F32 that is aligned to 4 bytes comes back as a view of the same memory, all else as a new array.
 * F64 is rounded to nearest even. Throws RangeError for a dtype other than F32, F16, BF16 and F64.
 */
export function toF32(tensor: { readonly dtype: string; readonly data: Uint8Array }): Float32Array {
  const { dtype, data } = tensor;
  switch (dtype) {
    case "F32":
      return new Float32Array(...aligned(data, 4));
    case "F16":
      return Float32Array.from(new Float16Array(...aligned(data, 2)));
    case "F64":
      return Float32Array.from(new Float64Array(...aligned(data, 8)));
    case "BF16":
      return expandBf16(new Uint16Array(...aligned(data, 2)));
    default:
      throw new RangeError(`Cannot read ${dtype} as f32: wanted F32, F16, BF16 or F64`);
  }
}

/** Little-endian bytes of f32 values in `format`, rounded to nearest even; F32 comes back as a view of the same memory. */
export function fromF32(values: Float32Array, format: FloatFormat): Uint8Array {
  switch (format) {
    case "F32":
      return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    case "F16":
      return new Uint8Array(Float16Array.from(values).buffer);
    case "BF16":
      return new Uint8Array(roundBf16(values).buffer);
  }
}

/** Buffer, offset and element count of a typed array over these bytes, copied where they stand unaligned. */
function aligned(data: Uint8Array, size: number): [ArrayBufferLike, number, number] {
  if (data.byteLength % size !== 0) {
    throw new RangeError(`Cannot read ${data.byteLength} bytes as numbers of ${size} bytes each`);
  }
  const bytes = data.byteOffset % size === 0 ? data : data.slice();
  return [bytes.buffer, bytes.byteOffset, bytes.byteLength / size];
}

/** bf16 is the upper half of an f32. */
function expandBf16(halves: Uint16Array): Float32Array {
  const bits = new Uint32Array(halves.length);
  for (let i = 0; i < halves.length; i++) bits[i] = halves[i] << 16;
  return new Float32Array(bits.buffer);
}

function roundBf16(values: Float32Array): Uint16Array {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const halves = new Uint16Array(values.length);
  for (let i = 0; i < bits.length; i++) {
    const word = bits[i];
    const isNaN = (word & 0x7fffffff) > 0x7f800000;
    // A NaN keeps its upper payload and becomes quiet: rounding could carry it to infinity.
    halves[i] = isNaN ? (word >>> 16) | 0x40 : (word + 0x7fff + ((word >>> 16) & 1)) >>> 16;
  }
  return halves;
}
