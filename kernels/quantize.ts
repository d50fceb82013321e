/** Weights as small integers with a scale for each group, made on the host at load. It knows no GPU. */

export type IntegerFormat = "int8" | "int4";

/** Weights that share a scale; also the steps of a product's inner dimension between two scales. */
export const GROUP = 32;

/** Rows of `rows` whose scales stand side by side, so that a kernel for several rows reads them together. */
export const SCALE_ROWS = 16;

/** Which way a group of weights runs: along the inner dimension of the product that reads them. */
export type Along = "rows" | "columns";

/** Shape of the scales of a (rows, columns) matrix. */
export function scaleShape([rows, columns]: readonly number[], along: Along): readonly [number, number] {
  return along === "columns"
    ? [Math.ceil(rows / GROUP), columns]
    : [Math.ceil(rows / SCALE_ROWS), Math.ceil(columns / GROUP) * SCALE_ROWS];
}

/** Words of a packed row. */
export function rowWords(columns: number, format: IntegerFormat): number {
  return Math.ceil(columns / (format === "int8" ? 4 : 8));
}

/**
 * Symmetric quantization to nearest: value ≈ integer · scale, a scale for each group of 32. int8 takes -127 to 127 with the
 * largest magnitude at an end; int4 -8 to 7 with it at -8, whatever its sign.
 *
 * @param values (rows, columns).
 * @param along "columns" where groups run down each column, for weights (K, N) of a product A B; "rows" where they run
 *   along each row, for weights (N, K) of A Bᵀ and tables.
 * @returns values packed four or eight a word, first in the lowest bits, rows padded to whole words; scales of
 *   `scaleShape`: (rows / 32, columns), or (rows / 16, columns / 32 · 16), where 16 rows' scales of a group stand together.
 * @throws RangeError for a value that is no number.
 */
export function quantize(
  values: Float32Array,
  shape: readonly number[],
  format: IntegerFormat,
  along: Along,
): { readonly values: Uint32Array; readonly scales: Float32Array } {
  const [rows, columns] = shape;
  if (shape.length !== 2 || rows * columns !== values.length) {
    throw new RangeError(`Cannot quantize ${values.length} values as (${shape.join(", ")}): want a matrix of as many`);
  }
  const [height, width] = scaleShape(shape, along);
  const extremes = new Float32Array(height * width);
  const placeOf = scalePlaces(shape, along);
  each(rows, columns, (at, row, column) => {
    const place = placeOf(row, column);
    if (!(Math.abs(values[at]) <= Math.abs(extremes[place]))) extremes[place] = values[at];
  });
  const [lowest, highest] = format === "int8" ? [-127, 127] : [-8, 7];
  const scales = extremes.map((extreme) => format === "int8" ? Math.abs(extreme) / highest : extreme / lowest);
  const broken = scales.findIndex((scale) => !Number.isFinite(scale));
  if (broken >= 0) throw new RangeError(`Cannot quantize: a group of weights holds ${extremes[broken]}`);
  const bits = format === "int8" ? 8 : 4;
  const words = rowWords(columns, format);
  const packed = new Uint32Array(rows * words);
  each(rows, columns, (at, row, column) => {
    const scale = scales[placeOf(row, column)];
    if (scale === 0) return;
    const integer = Math.max(lowest, Math.min(highest, Math.round(values[at] / scale)));
    packed[row * words + Math.floor(column * bits / 32)] |= (integer & (2 ** bits - 1)) << (column * bits % 32);
  });
  return { values: packed, scales };
}

/** The values that a quantized matrix stands for. */
export function expand(
  { values, scales }: { readonly values: Uint32Array; readonly scales: Float32Array },
  [rows, columns]: readonly number[],
  format: IntegerFormat,
  along: Along,
): Float32Array {
  const bits = format === "int8" ? 8 : 4;
  const words = rowWords(columns, format);
  const placeOf = scalePlaces([rows, columns], along);
  const result = new Float32Array(rows * columns);
  each(rows, columns, (at, row, column) => {
    const leading = values[row * words + Math.floor(column * bits / 32)] << (32 - bits - column * bits % 32);
    result[at] = (leading >> (32 - bits)) * scales[placeOf(row, column)];
  });
  return result;
}

/** Where the scale of an element stands. */
function scalePlaces(shape: readonly number[], along: Along): (row: number, column: number) => number {
  const [, width] = scaleShape(shape, along);
  if (along === "columns") return (row, column) => Math.floor(row / GROUP) * width + column;
  return (row, column) =>
    Math.floor(row / SCALE_ROWS) * width + Math.floor(column / GROUP) * SCALE_ROWS + row % SCALE_ROWS;
}

function each(rows: number, columns: number, visit: (at: number, row: number, column: number) => void): void {
  for (let row = 0, at = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) visit(at++, row, column);
  }
}
