/** How shaders turn 16 bytes of stored weights into f32 vectors, for each format. It knows neither tensors nor kernels. */

/** Formats in which weights are stored. */
export type WeightFormat = "f32" | "bf16" | "f16" | "i8" | "i4";

export interface Unpacking {
  /** Type of the 16 bytes in buffers. */
  readonly element: "vec4f" | "vec4u";
  /** Format of textures that hold them. */
  readonly texture: "rgba32float" | "rgba32uint";
  /** Weights in 16 bytes. */
  readonly weights: number;
  /** Expression of the vec4f that `raw` gives as its vector `v`, of `weights / 4`. */
  unpack(raw: string, v: number): string;
  /** Which of the weights, in their order, component `e` of vector `v` is. */
  place(v: number, e: number): number;
}

/** Signed integers of `bits` bits: word e of the four holds 32 / bits weights, the first in its lowest bits. */
function integers(bits: 4 | 8): Unpacking {
  const each = 32 / bits;
  return {
    element: "vec4u",
    texture: "rgba32uint",
    weights: 4 * each,
    unpack(raw, v) {
      const up = 32 - bits * (v + 1);
      const shifted = up === 0 ? `bitcast<vec4i>(${raw})` : `(bitcast<vec4i>(${raw}) << vec4u(${up}u))`;
      return `vec4f(${shifted} >> vec4u(${32 - bits}u))`;
    },
    place: (v, e) => each * e + v,
  };
}

export const UNPACKING: Readonly<Record<WeightFormat, Unpacking>> = {
  f32: { element: "vec4f", texture: "rgba32float", weights: 4, unpack: (raw) => raw, place: (_, e) => e },
  bf16: {
    element: "vec4u",
    texture: "rgba32uint",
    weights: 8,
    unpack: (raw, v) => `bitcast<vec4f>(${v === 0 ? `${raw} << vec4u(16u)` : `${raw} & vec4u(0xffff0000u)`})`,
    place: (v, e) => 2 * e + v,
  },
  f16: {
    element: "vec4u",
    texture: "rgba32uint",
    weights: 8,
    unpack(raw, v) {
      const [first, second] = v === 0 ? ["x", "y"] : ["z", "w"];
      return `vec4f(unpack2x16float(${raw}.${first}), unpack2x16float(${raw}.${second}))`;
    },
    place: (v, e) => 4 * v + e,
  },
  i8: integers(8),
  i4: integers(4),
};

/** Where weight `index` of 16 bytes comes out: its vector and component. */
export function placeOf({ vectors, place }: { vectors: number; place: Unpacking["place"] }, index: number) {
  for (let v = 0; v < vectors; v++) for (let e = 0; e < 4; e++) if (place(v, e) === index) return [v, e] as const;
  throw new RangeError(`Cannot place weight ${index}: the texel holds ${4 * vectors}`);
}
