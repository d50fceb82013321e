/** What all matmul kernels share in WGSL: sizes as uniforms, operands, the epilogue. It knows no tile. */

/** nn: A (M, K) B (K, N); nt: A (M, K) B (N, K); tn: A (K, M) B (K, N). */
export type Form = "nn" | "nt" | "tn";

export interface Epilogue {
  /** Adds bias (N) to each row. */
  readonly bias: boolean;
  /** Adds to what C holds. */
  readonly accumulate: boolean;
}

/** How a kernel reads A and B. */
export type Source = "texture" | "buffer";

/** Strides and first columns count elements. */
const SIZES = `struct Sizes {
  m: u32, n: u32, k: u32, a_stride: u32, b_stride: u32, c_stride: u32, a_column: u32, b_column: u32, c_column: u32,
}`;

/** Bindings of a matmul kernel whose buffers hold `element`s: a, b, c, bias where there is one, sizes. */
export function declarations(element: "f32" | "vec4f", source: Source, { bias }: Epilogue): string {
  const operand = source === "texture"
    ? (name: string) => `var ${name}: texture_storage_2d<rgba32float, read>;`
    : (name: string) => `var<storage, read> ${name}: array<${element}>;`;
  return `${SIZES}
@group(0) @binding(0) ${operand("a")}
@group(0) @binding(1) ${operand("b")}
@group(0) @binding(2) var<storage, read_write> c: array<${element}>;
${bias ? `@group(0) @binding(3) var<storage, read> bias: array<${element}>;` : ""}
@group(0) @binding(${bias ? 4 : 3}) var<uniform> sizes: Sizes;`;
}

/** The statement that puts `value` at element (`row`, `column`) of C; for kernels whose buffers hold f32. */
export function storeElement(row: string, column: string, value: string, { bias, accumulate }: Epilogue): string {
  const place = `c[(${row}) * sizes.c_stride + sizes.c_column + ${column}]`;
  const added = bias ? ` + bias[sizes.c_column + ${column}]` : "";
  return `${place} = ${accumulate ? `${place} + ` : ""}${value}${added};`;
}

/** The vec4 at column 4 * `x` of row `y`. */
export function loadVector(name: "a" | "b", source: Source, x: string, y: string): string {
  if (source === "texture") return `textureLoad(${name}, vec2u(${x}, ${y}))`;
  return `${name}[((${y}) * sizes.${name}_stride + sizes.${name}_column) / 4u + ${x}]`;
}
