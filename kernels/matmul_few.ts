/**
 * Products with few rows, as in decoding, as dispatches: which kernels suit the adapter, in which order, and how weights
 * past a binding or a texture are cut. Weights are in any stored format. It knows no graph.
 */
import type { Binding, Capabilities, Dispatch, Scratch, Tensor } from "./gpu/graph.ts";
import { byteLength } from "./gpu/graph.ts";
import {
  acrossShader,
  type AcrossShape,
  alongShader,
  type AlongShape,
  type FewEpilogue,
  sharedShader,
  type SharedShape,
} from "./matmul_few_shader.ts";
import type { Source } from "./matmul_shader.ts";
import { GROUP } from "./quantize.ts";
import { UNPACKING, type WeightFormat } from "./unpacking.ts";

/** Rows up to which these kernels are offered, and the most that one workgroup holds. */
export const FEW_ROWS = 8;

/** A tensor from one of its rows on; a slice starts at a multiple of 256 bytes. */
interface Rows {
  readonly tensor: Tensor | Scratch;
  readonly row?: number;
}

/** C (m, n) = A B, or + bias, or added to C; B is stored (K, N) in `nn`, (N, K) in `nt`. A and C are f32. */
export interface FewProduct extends FewEpilogue {
  readonly form: "nn" | "nt";
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly a: Rows;
  readonly b: Rows;
  readonly c: Rows;
  /** Of i8 and i4: (K / 32, N) f32 in `nn`; in `nt` (N / 16, K / 32 · 16), where sixteen rows of B stand together. */
  readonly scales?: Tensor;
  readonly biasTensor?: Tensor;
}

/** A kernel for one format, with what one workgroup makes. */
interface FewKernel {
  readonly name: string;
  readonly source: Source;
  /** How A is read. */
  readonly sourceOfA: Source;
  readonly tile: readonly [rows: number, columns: number];
  /** Loop iterations of an invocation. */
  readonly iterations: number;
  readonly shader: string;
}

/** Columns of the result that one dispatch makes start at multiples of this, so that slices start at 256 bytes. */
const COLUMN_STEP = 64;

/** Pieces a lane takes, by format; the tuner picks among them. */
const PIECES: Readonly<Record<WeightFormat, readonly number[]>> = {
  f32: [4, 2],
  bf16: [4, 2],
  f16: [2, 4],
  i8: [2, 1],
  i4: [1],
};

/** Whether kernels are offered for a product's sizes, on an adapter that binds its weights, of up to `most` rows. */
export function suitsFew(product: FewProduct, most = FEW_ROWS): boolean {
  return product.m <= most && vectorised(product);
}

/** Candidate dispatch lists, the best guess first; none where sizes don't suit. */
export function fewCandidates(product: FewProduct, device: Capabilities, most = FEW_ROWS): Dispatch[][] {
  if (!suitsFew(product, most)) return [];
  const kernels = product.form === "nn" ? acrossKernels(product, device) : alongKernels(product, device);
  return kernels
    .filter((kernel) => kernel.iterations <= device.loopIterations && fits(product, kernel, device))
    .map((kernel) => dispatches(product, kernel, device));
}

function formatOf({ b }: FewProduct): WeightFormat {
  return b.tensor.dtype as WeightFormat;
}

/** 16-byte pieces of a row. */
function piecesOf(tensor: Tensor | Scratch): number {
  return byteLength(tensor) / tensor.shape[0] / 16;
}

/** Whether rows are whole 16-byte pieces, and sizes whole vectors. */
function vectorised(product: FewProduct): boolean {
  const { form, n, k, a, b, c } = product;
  const { weights } = UNPACKING[formatOf(product)];
  const scaled = product.scales !== undefined;
  const whole = form === "nt" ? k % weights === 0 && (!scaled || n % 16 === 0) : n % 4 === 0;
  const operands = [a, b, ...(form === "nn" ? [c] : [])].every(({ tensor }) => Number.isInteger(piecesOf(tensor)));
  return whole && operands && (!scaled || k % GROUP === 0 && Number.isInteger(piecesOf(product.scales)));
}

/** Rows that one workgroup holds. */
function heldRows(m: number): number {
  return Math.min(FEW_ROWS, 2 ** Math.ceil(Math.log2(m)));
}

/** Textures and buffers where both serve, as the adapter likes them. */
function sources({ b, scales }: FewProduct): Source[] {
  const textures = [b.tensor, ...(scales ? [scales] : [])].every((tensor) => piecesOf(tensor) % 16 === 0);
  return textures ? ["texture", "buffer"] : ["buffer"];
}

function acrossKernels(product: FewProduct, device: Capabilities): FewKernel[] {
  const { m, k } = product;
  const format = formatOf(product);
  const { weights } = UNPACKING[format];
  const rows = heldRows(m);
  if (!device.cpu) return [sharedKernel(product, rows)];
  const shuffle = device.subgroupSize > 0 && device.subgroupSize <= 16;
  const lanes = shuffle ? device.subgroupSize : 8;
  return sources(product).flatMap((source) =>
    PIECES[format].flatMap((pieces): FewKernel[] => {
      const depth = depthOf(rows, lanes, k, pieces * weights / 4, product.scales !== undefined);
      if (depth === null) return [];
      const shape: AcrossShape = { format, source, rows, lanes, shuffle, pieces, depth };
      return [{
        name: `few nn ${format} ${source} ${rows}x${pieces * weights}${shuffle ? ` shared by ${lanes}` : ""} k${depth}`,
        source,
        sourceOfA: "buffer",
        tile: [rows, lanes * pieces * weights],
        iterations: k / depth + k / GROUP,
        shader: acrossShader(shape, product),
      }];
    })
  );
}

/** Multiply-adds of vectors in the loop's body past which CPU drivers slow down (LOG.md). */
const BODY = 256;

/** Steps in one pass: as many as one load of A by all lanes covers, fewer where the inner size or the body wants it. */
function depthOf(rows: number, lanes: number, k: number, vectors: number, scaled: boolean): number | null {
  const most = Math.min(GROUP, Math.max(4, 4 * lanes / rows), Math.max(4, BODY / (rows * vectors)));
  return [32, 16, 8, 4].find((depth) => depth <= most && k % (scaled ? GROUP : depth) === 0) ?? null;
}

function sharedKernel(product: FewProduct, rows: number): FewKernel {
  const format = formatOf(product);
  const { weights } = UNPACKING[format];
  const across = Math.max(1, 32 / weights);
  const along = 128 / across;
  const shape: SharedShape = { format, source: "buffer", rows, across, along };
  return {
    name: `few nn ${format} ${rows}x${across * weights} by ${along}`,
    source: "buffer",
    sourceOfA: "buffer",
    tile: [rows, across * weights],
    iterations: Math.ceil(product.k / along) + rows * along,
    shader: sharedShader(shape, product),
  };
}

function alongKernels(product: FewProduct, device: Capabilities): FewKernel[] {
  const { m, k } = product;
  const format = formatOf(product);
  const { weights } = UNPACKING[format];
  const rows = heldRows(m);
  const texturedA = piecesOf(product.a.tensor) % 16 === 0;
  const kernel = (source: Source, lanes: number, columns: number, shuffle: boolean): FewKernel => {
    const sourceOfA = texturedA ? source : "buffer";
    const shape: AlongShape = { format, source, rows, lanes, shuffle, columns, sourceOfA };
    return {
      name: `few nt ${format} ${source} ${rows}x${columns} by ${lanes}${shuffle ? "" : " in shared memory"}`,
      source,
      sourceOfA,
      tile: [rows, columns],
      iterations: Math.ceil(k / weights / lanes) + rows * columns * 2,
      shader: alongShader(shape, product),
    };
  };
  const lanes = device.subgroupSize;
  if (!device.cpu) {
    return [...(lanes > 0 ? [kernel("buffer", lanes, 4, true)] : []), kernel("buffer", 64, 4, false)];
  }
  const own = lanes > 0 ? sources(product).flatMap((s) => columnsOf(rows).map((c) => kernel(s, lanes, c, true))) : [];
  return [...own, ...sources(product).map((source) => kernel(source, 8, 4, false))];
}

/** Rows of B at once: their sums must stay in registers. */
function columnsOf(rows: number): number[] {
  return rows === 1 ? [8, 16] : rows === 2 ? [8] : [4];
}

function fits({ form, b, k, n }: FewProduct, { source }: FewKernel, { limits }: Capabilities): boolean {
  if (form === "nt") return true;
  if (source === "buffer") return byteLength(b.tensor) <= limits.maxStorageBufferBindingSize;
  return Math.max(k, piecesOf(b.tensor), n / 4) <= limits.maxTextureDimension2D;
}

function dispatches(product: FewProduct, kernel: FewKernel, device: Capabilities): Dispatch[] {
  const { limits } = device;
  const { n, b } = product;
  const bound = kernel.source === "texture"
    ? limits.maxTextureDimension2D
    : Math.floor(limits.maxStorageBufferBindingSize / (16 * piecesOf(b.tensor)));
  const most = product.form === "nn" ? n : Math.min(bound, limits.maxComputeWorkgroupsPerDimension * kernel.tile[1]);
  const count = Math.ceil(n / most);
  const step = count === 1 ? n : Math.ceil(n / count / COLUMN_STEP) * COLUMN_STEP;
  return Array.from({ length: Math.ceil(n / step) }, (_, i) => {
    return dispatch(product, kernel, i * step, Math.min(n, (i + 1) * step));
  });
}

function dispatch(product: FewProduct, kernel: FewKernel, from: number, to: number): Dispatch {
  const { form, m, k, a, b, c, scales, biasTensor } = product;
  const { source, sourceOfA, tile } = kernel;
  const [first, last] = form === "nt" ? [from, to] : [0, k];
  const scaleRows: [number, number] = form === "nt" ? [from / 16, to / 16] : [0, k / GROUP];
  return {
    label: `matmul ${kernel.name}`,
    wgsl: kernel.shader,
    workgroups: [Math.ceil((to - from) / tile[1]), Math.ceil(m / tile[0]), 1],
    bindings: [
      bind(a, [0, m], sourceOfA),
      bind(b, [first, last], source),
      ...(scales ? [bind({ tensor: scales }, scaleRows, source)] : []),
      { ...bind(c, [0, m], "buffer"), access: "read_write" },
      ...(product.bias ? [{ tensor: biasTensor!, access: "read" } as const] : []),
    ],
    uniforms: [
      m,
      to - from,
      k,
      4 * piecesOf(a.tensor),
      piecesOf(b.tensor),
      scales ? piecesOf(scales) : 0,
      4 * piecesOf(c.tensor),
      from,
    ],
  };
}

function bind({ tensor, row = 0 }: Rows, [from, to]: readonly [number, number], source: Source): Binding {
  const rows = [row + from, row + to] as const;
  if (source === "buffer") return { tensor, access: "read", rows };
  const { texture, weights } = UNPACKING[tensor.dtype as WeightFormat];
  return { tensor, access: "read", as: { texture, rowLength: weights * piecesOf(tensor), rows } };
}
