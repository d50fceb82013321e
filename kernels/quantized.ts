/**
 * Products with, and rows of, weights that stand as small integers with a scale for each group of 32: the weights are
 * expanded where they are read. It knows no model, and has no gradients.
 */
import {
  apply,
  byteLength,
  type Capabilities,
  count,
  type Dispatch,
  type DType,
  formatType,
  type Op,
  type Tensor,
  type TensorType,
} from "./gpu/graph.ts";
import { read, rowSlice, write } from "./gpu/primitives.ts";
import { grid, GRID_WIDTH, wgsl } from "./gpu/wgsl.ts";
import { matmul } from "./matmul.ts";
import { fewCandidates, type FewProduct, suitsFew } from "./matmul_few.ts";
import { type Along, GROUP, type IntegerFormat, SCALE_ROWS, scaleShape } from "./quantize.ts";
import rowsSource from "./quantized_rows.wgsl" with { type: "text" };

export { quantize } from "./quantize.ts";

/** A matrix as `quantize` made it, on the GPU. */
export interface Quantized {
  /** (rows, columns) i8 or i4. */
  readonly values: Tensor;
  /** f32, of `scaleShape`. */
  readonly scales: Tensor;
}

export interface QuantizedMatmulOptions {
  /** The weights are stored (N, K), with groups along their rows; else (K, N), with groups down their columns. */
  readonly transposeB?: boolean;
  /** (N), added to each row. */
  readonly bias?: Tensor;
}

const WORKGROUP = 64;

/** Rows of a product up to which weights are expanded as they are read; with more, expanding them first costs less. */
const ROWS = 16;

/** Types of the two tensors of a quantized (rows, columns) matrix. */
export function quantizedTypes(
  shape: readonly number[],
  format: IntegerFormat,
  along: Along,
): { readonly values: TensorType; readonly scales: TensorType } {
  const dtype: DType = format === "int8" ? "i8" : "i4";
  return { values: { shape, dtype }, scales: { shape: scaleShape(shape, along), dtype: "f32" } };
}

/**
 * x (M, K) times quantized weights (K, N), or (N, K) transposed.
 *
 * @returns (M, N) f32.
 * @throws RangeError for shapes that don't belong together.
 */
export function quantizedMatmul(x: Tensor, weights: Quantized, options: QuantizedMatmulOptions = {}): Tensor {
  const { transposeB = false, bias } = options;
  const inputs = [x, weights.values, weights.scales, ...(bias ? [bias] : [])];
  const attrs = { transposeB, bias: bias !== undefined };
  const output = { tensor: { ...productType(inputs, attrs) } };
  if (suitsFew(productOf(inputs, attrs, output.tensor), ROWS)) return apply(matmulOp, inputs, attrs)[0];
  return matmul(x, dequantize(weights, transposeB ? "rows" : "columns"), { transposeB, bias });
}

/** Quantized weights as f32, (rows, columns). */
export function dequantize({ values, scales }: Quantized, along: Along): Tensor {
  return apply(rowsOp, [values, scales], { along })[0];
}

/**
 * Row ids[n] of a quantized table (V, C), with groups along its rows, for each n.
 *
 * @param ids (N) u32; an id ≥ V takes zeroes.
 * @returns (N, C) f32.
 */
export function quantizedEmbedding({ values, scales }: Quantized, ids: Tensor): Tensor {
  return apply(rowsOp, [values, scales, ids], { along: "rows" })[0];
}

interface ProductAttrs {
  readonly transposeB: boolean;
  readonly bias: boolean;
}

function productType(inputs: readonly TensorType[], { transposeB, bias }: ProductAttrs): TensorType {
  const [x, values, scales] = inputs;
  const refuse = (why: string) => {
    throw new RangeError(`Cannot multiply ${inputs.map(formatType).join(" by ")}: ${why}`);
  };
  if (x.shape.length !== 2 || values.shape.length !== 2 || x.dtype !== "f32") refuse("want f32 by a quantized matrix");
  requireQuantized(values, scales, transposeB ? "rows" : "columns");
  const [n, k] = transposeB ? values.shape : values.shape.toReversed();
  if (x.shape[1] !== k) refuse(`inner sizes are ${x.shape[1]} and ${k}`);
  if (bias && (inputs[3].shape.join() !== `${n}` || inputs[3].dtype !== "f32")) refuse(`the bias must be (${n}) f32`);
  return { shape: [x.shape[0], n], dtype: "f32" };
}

function requireQuantized(values: TensorType, scales: TensorType, along: Along): void {
  const shape = scaleShape(values.shape, along);
  const right = (values.dtype === "i8" || values.dtype === "i4") && scales.shape.join() === shape.join() &&
    scales.dtype === "f32";
  if (!right) {
    throw new RangeError(
      `Cannot use ${formatType(values)} with scales ${formatType(scales)}: want i8 or i4 with (${
        shape.join(", ")
      }) f32`,
    );
  }
}

function productOf(
  [x, values, scales, biasTensor]: readonly Tensor[],
  { transposeB, bias }: ProductAttrs,
  c: FewProduct["c"]["tensor"] | TensorType,
): FewProduct {
  const [m, k] = x.shape;
  return {
    form: transposeB ? "nt" : "nn",
    m,
    n: c.shape[1],
    k,
    a: { tensor: x },
    b: { tensor: values },
    c: { tensor: c as Tensor },
    scales,
    biasTensor,
    bias,
    accumulate: false,
  };
}

const matmulOp: Op<ProductAttrs> = {
  name: "quantized_matmul",
  infer: (inputs, attrs) => [productType(inputs, attrs)],
  kernels: ({ inputs, outputs: [c], attrs }, device) => fewCandidates(productOf(inputs, attrs, c), device, ROWS),
  cost: ({ inputs, outputs: [c] }) => ({
    flops: 2 * count(c) * inputs[0].shape[1],
    bytes: [...inputs, c].reduce((sum, tensor) => sum + byteLength(tensor), 0),
  }),
};

/** (values, scales, [ids]) → rows as f32: those of ids, or all. */
const rowsOp: Op<{ readonly along: Along }> = {
  name: "quantized_rows",
  infer([values, scales, ids], { along }) {
    requireQuantized(values, scales, along);
    if (ids && (ids.shape.length !== 1 || ids.dtype !== "u32")) {
      throw new RangeError(`Cannot take rows ${formatType(ids)} of ${formatType(values)}: want (N) u32`);
    }
    return [{ shape: [ids?.shape[0] ?? values.shape[0], values.shape[1]], dtype: "f32" }];
  },
  kernels({ inputs: [values, scales, ids], outputs: [y], attrs: { along } }, device) {
    const each = values.dtype === "i8" ? 4 : 8;
    const [rows, columns] = values.shape;
    const words = Math.ceil(columns / each);
    const constants = {
      WORKGROUP,
      GRID_WIDTH,
      WORDS: words,
      EACH: each,
      COLUMNS: columns,
      ROWS: rows,
      GROUP,
      SCALE_ROWS,
    };
    const code = [
      ids ? "@group(0) @binding(3) var<storage, read> ids: array<u32>;" : "",
      `@group(0) @binding(${ids ? 4 : 3}) var<uniform> u: Uniforms;`,
      `fn id_of(row: u32) -> u32 { return ${ids ? "ids[row]" : "row + u.first"}; }`,
    ].join("\n");
    const text = wgsl(`${rowsSource}\n${code}`, {
      ...constants,
      SCALE_WIDTH: scales.shape[1],
      DOWN: along === "columns",
    });
    return [
      slicesOf(values, ids ? 0 : 4 * columns, device).map(([from, to]): Dispatch => ({
        label: "quantized rows",
        wgsl: text,
        workgroups: grid(Math.ceil((ids ? ids.shape[0] : to - from) * words / WORKGROUP)),
        bindings: [
          read(values, [from, to]),
          read(scales),
          write(y, ids ? undefined : [from, to]),
          ...(ids ? [read(ids)] : []),
        ],
        uniforms: [ids ? ids.shape[0] : to - from, from, to],
      })),
    ];
  },
  cost: ({ outputs: [y] }) => ({ flops: count(y), bytes: 5 * count(y) }),
};

/** Ranges of a matrix's rows that a binding takes, with `other` bytes a row bound beside them. */
function slicesOf(values: Tensor, other: number, { limits }: Capabilities): (readonly [number, number])[] {
  const [rows] = values.shape;
  const own = byteLength(values) / rows;
  const most = Math.max(own, other);
  const step = rows * most <= limits.maxStorageBufferBindingSize
    ? rows
    : Math.floor(rowSlice(most, limits.maxStorageBufferBindingSize, limits.minStorageBufferOffsetAlignment) / 64) * 64;
  return Array.from({ length: Math.ceil(rows / step) }, (_, i) => [i * step, Math.min(rows, (i + 1) * step)] as const);
}
