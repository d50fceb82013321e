/**
 * The one place where a model multiplies by its weights, so that number formats are met here alone: what is cast, and to
 * what. It knows no architecture.
 */
import { cast } from "../kernels/cast.ts";
import { embedding } from "../kernels/embedding.ts";
import type { Tensor } from "../kernels/gpu/graph.ts";
import { matmul } from "../kernels/matmul.ts";
import { dequantize, type Quantized, quantizedEmbedding, quantizedMatmul } from "../kernels/quantized.ts";
import { type Formats, type Init, type Matrix, type Scope, zeros } from "./scope.ts";

/** x (N, in) · weight (in, out) + bias (out), with the weight stored as the published GPT-2 checkpoints have it. */
export function linear(p: Scope, x: Tensor, out: number, init: Init): Tensor {
  const weight = p.matrix("weight", [x.shape[1], out], init);
  const bias = p.parameter("bias", [out], zeros);
  if (isQuantized(weight)) return quantizedMatmul(x, weight, { transposeB: true, bias });
  return matmul(operand(x, p.formats), weight, { transposeB: p.formats.serving, bias });
}

function isQuantized(matrix: Matrix): matrix is Quantized {
  return "values" in matrix;
}

/** Row ids[n] of a table (V, C) for each n, as f32. */
export function lookup(table: Matrix, ids: Tensor): Tensor {
  return isQuantized(table) ? quantizedEmbedding(table, ids) : embedding(table, ids);
}

/** A head's table as one tensor of floats; integers are expanded. */
export function asTensor(table: Matrix): Tensor {
  return isQuantized(table) ? dequantize(table, "rows") : table;
}

/** Logits (N, V) of rows (N, C) under a head's table (V, C). */
export function logits(hidden: Tensor, table: Matrix, formats: Formats): Tensor {
  if (isQuantized(table)) return quantizedMatmul(hidden, table, { transposeB: true });
  return matmul(operand(hidden, formats), table, { transposeB: true });
}

/** An activation as a product with a weight takes it. */
export function operand(x: Tensor, { operands }: Formats): Tensor {
  return operands === undefined ? x : cast(x, operands);
}
