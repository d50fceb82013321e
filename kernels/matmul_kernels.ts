/**
 * Which kernels suit a matrix product on an adapter, in which order. It knows sizes and formats; how a product is cut and
 * bound is matmul_dispatch.ts's.
 */
import type { FloatType } from "./cast.ts";
import { byteLength, type Capabilities, type Scratch, type Tensor } from "./gpu/graph.ts";
import { wgsl } from "./gpu/wgsl.ts";
import { type Block, blockShader, blockTile, isWhole, leastDepth } from "./matmul_block.ts";
import { FEW_ROWS } from "./matmul_few.ts";
import scalar from "./matmul_scalar.wgsl" with { type: "text" };
import {
  type Activation,
  elementDeclarations,
  type Epilogue,
  type Form,
  type Formats,
  type Source,
} from "./matmul_shader.ts";
import { type Tile, tileBytes, tileIterations, tileShader, tileThreads } from "./matmul_tile.ts";
import { UNPACKING } from "./unpacking.ts";

/** A tensor, f32 or packed halves, seen as rows; row 0 of the matrix is row `row` of the tensor. */
export interface Matrix {
  readonly tensor: Tensor | Scratch;
  /** Default 0. Where it isn't, a row before it ends at a multiple of 256 bytes. */
  readonly row?: number;
}

/** C (m, n) = A B + bias + residual, or added to C, in f32. The tensors' rows may be longer than the extents. */
export interface Product {
  readonly form: Form;
  readonly a: Matrix;
  readonly b: Matrix;
  readonly c: Matrix;
  readonly m: number;
  readonly n: number;
  readonly k: number;
  /** (n) */
  readonly bias?: Tensor;
  /** Of C's shape. */
  readonly residual?: Tensor;
  /** Of C's shape: takes a function of C. */
  readonly activated?: { readonly activation: Activation; readonly tensor: Tensor };
  readonly accumulate?: boolean;
}

export interface Kernel {
  readonly name: string;
  readonly source: Source;
  /** Rows and columns of the result one workgroup makes. */
  readonly tile: readonly [rows: number, columns: number];
  /** Steps of the inner dimension that the loop takes at once: a part of the product starts at a multiple of them. */
  readonly depth: number;
  /** Loop iterations of an invocation for one step of the inner dimension. */
  readonly iterations: number;
  /** Parts of the inner dimension that workgroups take side by side, to be added up by another kernel. */
  readonly splits: number;
  shader(epilogue: Epilogue): string;
}

/** Kernels of a product, the best guess first; the last is the plainest. */
export function kernelsFor(product: Product, device: Capabilities): Kernel[] {
  const lanes = device.subgroupSize;
  const register = (source: Source) =>
    [
      ...(lanes > 0 ? blocks(product, source, lanes, device.cpu) : []),
      ...blocks(product, source, 1, device.cpu),
    ].map((block) => blockKernel(product, block));
  const last = scalarKernel(product);
  const textures = fitsTextures(product, device) ? register("texture") : [];
  const buffers = register("buffer");
  if (device.cpu) return textures.length + buffers.length > 0 ? [...textures, ...buffers] : [last];
  const tiles = TILES.flatMap(([size, registers]) => tileKernel(product, size, registers, device));
  return [...splitTiles(product, tiles), ...tiles, ...buffers.reverse(), ...textures.slice(-1), last];
}

export function rowBytes(tensor: Tensor | Scratch): number {
  return byteLength(tensor) / tensor.shape[0];
}

export function elementBytes({ dtype }: Tensor | Scratch): number {
  return 16 / UNPACKING[dtype as FloatType].weights;
}

/** Elements of a row of the first dimension, with the padding of packed ones. */
export function stride(tensor: Tensor | Scratch): number {
  return rowBytes(tensor) / elementBytes(tensor);
}

/** A copy to a texture takes rows of a multiple of this many bytes. */
export const TEXTURE_ROW = 256;

/** On CPU drivers, where textures pay most, other operands are padded first: where what stands in the padding is known. */
function fitsTextures({ form, a, b, k }: Product, { cpu }: Capabilities): boolean {
  if ([a, b].every(({ tensor }) => rowBytes(tensor) % TEXTURE_ROW === 0) && (form === "tn" || k % PASS === 0)) {
    return true;
  }
  const along = form === "tn" ? [] : form === "nt" ? [a, b] : [a];
  return cpu && along.every(({ tensor }) => tensor.shape.slice(1).reduce((size, extent) => size * extent, 1) === k);
}

/** No loop takes more steps of the inner dimension at once. */
const PASS = 64;

/** Register blocks that suit a product, for the adapters they were measured on or meant for (LOG.md). */
function blocks(product: Product, source: Source, lanes: number, cpu: boolean): Block[] {
  const { form, m, k, a, b } = product;
  const formats = formatsOf(product);
  const pieces = [a, b].map(({ tensor }) => stride(tensor) / UNPACKING[tensor.dtype as FloatType].weights);
  if (source === "buffer" && !(wholeVectors(product) && pieces.every(Number.isInteger))) return [];
  const shapes = lanes > 1 ? sharing(form, formats, m, lanes) : alone(form, formats, source, cpu);
  const seen = new Set<string>();
  return shapes.flatMap(([rows, vectors, depth]) => {
    const workgroup: Block["workgroup"] = lanes > 1 ? [lanes, 1] : cpu ? [8, 1] : [8, 8];
    const block = { form, formats, source, lanes, rows, vectors, workgroup };
    const least = leastDepth(block);
    const fitting = [Math.max(depth, least), least].map((depth): Block => ({ ...block, depth }))
      .find((block) => isWhole(block) && (source === "texture" || form === "tn" || k % block.depth === 0));
    const name = JSON.stringify(fitting);
    if (fitting === undefined || seen.has(name)) return [];
    seen.add(name);
    return [fitting];
  });
}

/** Whether C, and with it bias and residual, consists of whole vec4f. */
function wholeVectors({ n, c }: Product): boolean {
  return n % 4 === 0 && stride(c.tensor) % 4 === 0;
}

/** Rows, vec4 columns and steps of the inner dimension that an invocation takes at once. */
type Shape = readonly [rows: number, vectors: number, depth: number];

function sharing(form: Form, formats: Formats, m: number, lanes: number): readonly Shape[] {
  const usual = SHARING[form][`${kindOf(formats.a)} by ${kindOf(formats.b)}`];
  if (form === "nt" && m > FEW_ROWS && m <= 16) return [[16, 1, 8], [16, 2, 8], ...usual];
  if (form === "tn" || m > FEW_ROWS) return usual;
  const rows = powerOfTwo(m);
  const depth = leastDepth({ form, formats, lanes, rows });
  // The loop's body must stay below about 1,000 multiply-adds (LOG.md).
  const most = Math.floor(256 / (rows * Math.max(8, depth)));
  const vectors = form === "nt" ? 1 : Math.max(formats.b === "f32" ? 1 : 2, Math.min(4, most));
  return [[rows, vectors, 8], ...usual];
}

type Kind = "f32" | "packed";

function kindOf(format: FloatType): Kind {
  return format === "f32" ? "f32" : "packed";
}

/** By the formats of A and B, the best first. */
const SHARING: Readonly<Record<Form, Readonly<Record<`${Kind} by ${Kind}`, readonly Shape[]>>>> = {
  nn: {
    "f32 by f32": [[16, 2, 8], [16, 2, 4], [32, 1, 8]],
    "f32 by packed": [[8, 4, 4], [8, 4, 8], [16, 2, 4]],
    "packed by f32": [[16, 2, 8], [32, 1, 8]],
    "packed by packed": [[16, 2, 8], [8, 4, 8]],
  },
  nt: {
    "f32 by f32": [[24, 1, 8], [32, 1, 8], [16, 1, 8]],
    "f32 by packed": [[24, 1, 8], [16, 1, 8]],
    "packed by f32": [[24, 1, 8], [16, 1, 8]],
    "packed by packed": [[24, 1, 8], [16, 1, 8]],
  },
  tn: {
    "f32 by f32": [[32, 2, 1], [16, 2, 4], [32, 2, 2]],
    "f32 by packed": [[16, 2, 4], [32, 2, 2]],
    "packed by f32": [[16, 2, 4], [32, 2, 2]],
    "packed by packed": [[16, 2, 4], [8, 4, 4]],
  },
};

function alone(form: Form, formats: Formats, source: Source, cpu: boolean): readonly Shape[] {
  if (cpu) return [source === "texture" ? [16, 2, 4] : [8, 2, 4]];
  const rows = form === "tn" ? UNPACKING[formats.a].weights : 4;
  return [[rows, form !== "nt" && formats.b !== "f32" ? 2 : 1, 4]];
}

function blockKernel(product: Product, block: Block): Kernel {
  const { formats, source, lanes, rows, vectors, depth } = block;
  const element = wholeVectors(product) ? "vec4f" : "f32";
  return {
    name: `${formatsName(formats)}${source} ${rows}x${4 * vectors}${lanes > 1 ? ` shared by ${lanes}` : ""} k${depth}`,
    source,
    tile: blockTile(block),
    depth,
    iterations: 1 / depth,
    splits: 1,
    shader: (epilogue) => blockShader(block, element, epilogue),
  };
}

/** Sides of the workgroup's tile and of an invocation's part of it, the best guess first. */
const TILES = [[64, 4], [128, 8], [64, 8], [32, 4]] as const;

function tileKernel(product: Product, size: number, registers: number, device: Capabilities): Kernel[] {
  const { form, a, b } = product;
  const formats = formatsOf(product);
  const pieces = [a, b].every(({ tensor }) => rowBytes(tensor) % 16 === 0);
  const tile: Tile = { form, formats, size, registers, depth: size === 128 ? 8 : 16, pieces };
  const { maxComputeWorkgroupStorageSize, maxComputeInvocationsPerWorkgroup } = device.limits;
  if (tileBytes(tile) > maxComputeWorkgroupStorageSize) return [];
  if (tileThreads(tile) ** 2 > maxComputeInvocationsPerWorkgroup) return [];
  return [{
    name: `${formatsName(formats)}tile ${size}x${size} by ${registers}x${registers}`,
    source: "buffer",
    tile: [size, size],
    depth: tile.depth,
    iterations: tileIterations(tile),
    splits: 1,
    shader: (epilogue) => tileShader(tile, epilogue),
  }];
}

/** Workgroups that keep a GPU busy. */
const BUSY = 256;

/** Steps of the inner dimension that a split has at least, so that adding up stays small beside it. */
const SPLIT_STEPS = 256;

/** Where C gives few workgroups and the inner dimension is long, some share each tile of C. */
function splitTiles({ m, n, k }: Product, tiles: readonly Kernel[]): Kernel[] {
  return tiles.flatMap((kernel) => {
    const workgroups = Math.ceil(m / kernel.tile[0]) * Math.ceil(n / kernel.tile[1]);
    const splits = Math.min(Math.floor(k / SPLIT_STEPS), Math.ceil(BUSY / workgroups), 16);
    return splits < 2 || workgroups > BUSY / 4 ? [] : [{ ...kernel, name: `${kernel.name} in ${splits}`, splits }];
  });
}

function scalarKernel(product: Product): Kernel {
  const { form } = product;
  const formats = formatsOf(product);
  const constants = { TRANSPOSE_A: form === "tn", TRANSPOSE_B: form === "nt" };
  return {
    name: `${formatsName(formats)}scalar`,
    source: "buffer",
    tile: [8, 8],
    depth: 1,
    iterations: 1,
    splits: 1,
    shader: (epilogue) => wgsl(`${elementDeclarations(formats, epilogue)}\n${scalar}`, constants),
  };
}

function formatsOf({ a, b }: Product): Formats {
  return { a: a.tensor.dtype as FloatType, b: b.tensor.dtype as FloatType };
}

function formatsName({ a, b }: Formats): string {
  return a === "f32" && b === "f32" ? "" : `${a} by ${b} `;
}

function powerOfTwo(size: number): number {
  return 2 ** Math.ceil(Math.log2(size));
}
