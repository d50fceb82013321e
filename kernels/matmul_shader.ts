/** What all matmul kernels share in WGSL: sizes as uniforms, operands in their formats, the epilogue. It knows no tile. */
import activations from "./activations.wgsl" with { type: "text" };
import type { FloatType } from "./cast.ts";
import { UNPACKING } from "./unpacking.ts";

/** nn: A (M, K) B (K, N); nt: A (M, K) B (N, K); tn: A (K, M) B (K, N). */
export type Form = "nn" | "nt" | "tn";

/** Functions that a product may end with; names of activations.wgsl. */
export type Activation = "gelu_tanh" | "gelu_erf" | "silu";

/** What happens to a sum before it is stored. */
export interface Epilogue {
  /** Adds bias (N) to each row. */
  readonly bias: boolean;
  /** Adds (M, N). */
  readonly residual: boolean;
  /** Adds to what C holds. */
  readonly accumulate: boolean;
  /** Stores this function of C beside it. */
  readonly activation: Activation | null;
}

/** How a kernel reads A and B. */
export type Source = "texture" | "buffer";

/** Formats of the operands; sums and C are f32. */
export interface Formats {
  readonly a: FloatType;
  readonly b: FloatType;
}

/**
 * Strides and first columns count elements, padding of packed rows included. The grid's z takes `k_part` steps of the
 * inner dimension, and its own m rows of C.
 */
const SIZES = `struct Sizes {
  m: u32, n: u32, k: u32, a_stride: u32, b_stride: u32, c_stride: u32, a_column: u32, b_column: u32, c_column: u32,
  k_part: u32,
}`;

/** What C, bias and residual are arrays of: whole vectors, or elements where rows are no multiple of 4. */
export type Element = "f32" | "vec4f";

/** Bindings of a kernel that reads pieces of 16 bytes, and its `store`. */
export function pieceDeclarations(formats: Formats, source: Source, element: Element, epilogue: Epilogue): string {
  const operand = (name: "a" | "b") => {
    const { element, texture } = UNPACKING[formats[name]];
    return source === "texture"
      ? `var ${name}: texture_storage_2d<${texture}, read>;`
      : `var<storage, read> ${name}: array<${element}>;`;
  };
  return declarations(operand, element, epilogue);
}

/** The same for kernels that read single elements: `a_at` and `b_at` are functions of an element's index. */
export function elementDeclarations(formats: Formats, epilogue: Epilogue): string {
  const operand = (name: "a" | "b") => `var<storage, read> ${name}: array<${formats[name] === "f32" ? "f32" : "u32"}>;`;
  return `${declarations(operand, "f32", epilogue)}
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

function declarations(operand: (name: "a" | "b") => string, element: Element, epilogue: Epilogue): string {
  const names = ["bias", "residual"].filter((name) => epilogue[name as "bias" | "residual"]);
  const extra = [
    ...names.map((name) => `var<storage, read> ${name}: array<${element}>;`),
    ...(epilogue.activation ? [`var<storage, read_write> activated: array<${element}>;`] : []),
    "var<uniform> sizes: Sizes;",
  ];
  return `${SIZES}
@group(0) @binding(0) ${operand("a")}
@group(0) @binding(1) ${operand("b")}
@group(0) @binding(2) var<storage, read_write> c: array<${element}>;
${extra.map((declaration, i) => `@group(0) @binding(${3 + i}) ${declaration}`).join("\n")}
${epilogue.activation ? `alias T = ${element};\n${activations}` : ""}
${storeFunctions(element, epilogue)}`;
}

/**
 * `store(part, row, column, sum)` puts a vec4f, `store_element` one f32 at a place of C that may lie past its edges;
 * `part` is the grid's z.
 */
function storeFunctions(element: Element, { bias, residual, accumulate, activation }: Epilogue): string {
  const whole = element === "vec4f";
  const store = `fn ${whole ? "store" : "store_element"}(part: u32, row: u32, column: u32, sum: ${element}) {
  if (row < sizes.m && column < sizes.n) {
    let at = ((part * sizes.m + row) * sizes.c_stride + sizes.c_column + column)${whole ? " / 4u" : ""};
    let value = sum${bias ? ` + bias[${whole ? "(sizes.c_column + column) / 4u" : "sizes.c_column + column"}]` : ""}${
    residual ? " + residual[at]" : ""
  }${accumulate ? " + c[at]" : ""};
    c[at] = value;
    ${activation ? `activated[at] = ${activation}(value);` : ""}
  }
}`;
  if (whole) return store;
  const elements = ["x", "y", "z", "w"].map((part, e) => `store_element(part, row, column + ${e}u, sum.${part});`);
  return `${store}
fn store(part: u32, row: u32, column: u32, sum: vec4f) {
  ${elements.join("\n  ")}
}`;
}

/** The 16 bytes number `x` of row `y`, as they are stored. */
export function loadPiece(name: "a" | "b", source: Source, format: FloatType, x: string, y: string): string {
  if (source === "texture") return `textureLoad(${name}, vec2u(${x}, ${y}))`;
  const { weights } = UNPACKING[format];
  return `${name}[((${y}) * sizes.${name}_stride + sizes.${name}_column) / ${weights}u + ${x}]`;
}
