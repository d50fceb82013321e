/**
 * Heads that lie side by side in the rows of a tensor, so that queries, keys and values are read where one product wrote
 * them, and their gradients written where it reads them. It knows no attention.
 */
import { type Binding, type Capabilities, count, formatType, type Tensor } from "./gpu/graph.ts";

/** `heads` heads of `width` columns each, from column `first` on in rows of `stride` elements. */
export interface HeadsPlace {
  readonly first: number;
  readonly heads: number;
  readonly width: number;
  readonly stride: number;
}

/** Heads of a tensor whose first dimension are rows. */
export interface Heads extends HeadsPlace {
  readonly tensor: Tensor;
}

/** All of (N, H, D) as H heads; heads as they are. */
export function headsOf(x: Tensor | Heads): Heads {
  if ("tensor" in x) return x;
  if (x.shape.length !== 3) throw new RangeError(`Cannot take heads of ${formatType(x)}: want (rows, heads, width)`);
  const [, heads, width] = x.shape;
  return { tensor: x, first: 0, heads, width, stride: heads * width };
}

/**
 * Cuts rows into groups of heads, without a copy: `headsIn(qkv, [H, KVH, KVH], D)` are q, k and v of (N, (H + 2 · KVH) · D).
 *
 * @throws RangeError where the heads are not all of a row.
 */
export function headsIn(x: Tensor, counts: readonly number[], width: number): readonly Heads[] {
  const stride = count(x) / x.shape[0];
  const all = counts.reduce((sum, heads) => sum + heads, 0);
  if (all * width !== stride) {
    throw new RangeError(
      `Cannot cut ${formatType(x)} into ${counts.join(" + ")} heads of ${width}: a row has ${stride}`,
    );
  }
  return counts.map((heads, i) => {
    const before = counts.slice(0, i).reduce((sum, count) => sum + count, 0);
    return { tensor: x, first: before * width, heads, width, stride };
  });
}

export function placeOf({ first, heads, width, stride }: Heads): HeadsPlace {
  return { first, heads, width, stride };
}

/** Whether heads that lie in one tensor are all columns of its rows, each once. */
export function coverRows(places: readonly HeadsPlace[]): boolean {
  let end = 0;
  for (const { first, heads, width } of [...places].sort((a, b) => a.first - b.first)) {
    if (first !== end) return false;
    end += heads * width;
  }
  return end === places[0].stride;
}

/** WGSL: where a row's vec4f `vector`, counted from the first head's, lies in a buffer. */
export function vectorIndex({ first, stride }: HeadsPlace, row: string, vector: string): string {
  return `${row} * ${stride / 4}u + ${first === 0 ? "" : `${first / 4}u + `}${vector}`;
}

/** Whether a texture can be copied of the heads: by rows of a multiple of 256 bytes. */
export function fitsTexture({ tensor, heads, width, stride }: Heads, { limits }: Capabilities): boolean {
  return heads * width % 64 === 0 && stride % 64 === 0 && heads * width / 4 <= limits.maxTextureDimension2D &&
    tensor.shape[0] <= limits.maxTextureDimension2D;
}

/** The heads' columns alone as a texture. */
export function headsTexture({ tensor, first, heads, width, stride }: Heads): Binding {
  const columns = heads * width === stride ? {} : { columns: [first, first + heads * width] as const };
  return { tensor, access: "read", as: { texture: "rgba32float", rowLength: stride, ...columns } };
}
