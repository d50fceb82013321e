/** What all matmul kernels share in WGSL: sizes as uniforms, operands in their formats, the epilogue. It knows no tile. */
import type { FloatType } from "./cast.ts";
import { UNPACKING } from "./unpacking.ts";

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

/** Formats of the operands; sums and C are f32. */
export interface Formats {
  readonly a: FloatType;
  readonly b: FloatType;
}

/** Strides and first columns count elements, padding of packed rows included. */
const SIZES = `struct Sizes {
  m: u32, n: u32, k: u32, a_stride: u32, b_stride: u32, c_stride: u32, a_column: u32, b_column: u32, c_column: u32,
}`;

/** Bindings of a kernel that reads pieces of 16 bytes and whose C holds vec4f: a, b, c, bias where there is one, sizes. */
export function declarations(formats: Formats, source: Source, epilogue: Epilogue): string {
  const operand = (name: "a" | "b") => {
    const { element, texture } = UNPACKING[formats[name]];
    return source === "texture"
      ? `var ${name}: texture_storage_2d<${texture}, read>;`
      : `var<storage, read> ${name}: array<${element}>;`;
  };
  return bindings(operand, "vec4f", epilogue);
}

/** The same for kernels that read and store single elements: `a_at` and `b_at` are functions of an element's index. */
export function elementDeclarations(formats: Formats, epilogue: Epilogue): string {
  const operand = (name: "a" | "b") => `var<storage, read> ${name}: array<${formats[name] === "f32" ? "f32" : "u32"}>;`;
  return `${bindings(operand, "f32", epilogue)}
fn a_at(i: u32) -> f32 { ${elementOf("a", formats.a)} }
fn b_at(i: u32) -> f32 { ${elementOf("b", formats.b)} }`;
}

function elementOf(name: "a" | "b", format: FloatType): string {
  switch (format) {
    case "f32":
      return `return ${name}[i];`;
    case "bf16":
      return `let word = ${name}[i / 2u]; return bitcast<f32>(select(word << 16u, word & 0xffff0000u, i % 2u == 1u));`;
    case "f16":
      return `return unpack2x16float(${name}[i / 2u])[i % 2u];`;
  }
}

function bindings(operand: (name: "a" | "b") => string, element: "f32" | "vec4f", { bias }: Epilogue): string {
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

/** The 16 bytes number `x` of row `y`, as they are stored. */
export function loadPiece(name: "a" | "b", source: Source, format: FloatType, x: string, y: string): string {
  if (source === "texture") return `textureLoad(${name}, vec2u(${x}, ${y}))`;
  const { weights } = UNPACKING[format];
  return `${name}[((${y}) * sizes.${name}_stride + sizes.${name}_column) / ${weights}u + ${x}]`;
}
