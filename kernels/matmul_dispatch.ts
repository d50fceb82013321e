/**
 * Turns a matrix product into dispatches: which kernels fit its sizes and the adapter, in which order, and how the product
 * is cut where an operand passes a binding or a texture. Other ops use it for products over scratch memory and rows of
 * tensors. It knows no graph and no gradient.
 */
import type { FloatType } from "./cast.ts";
import { type Binding, byteLength, type Capabilities, type Dispatch, type Scratch, type Tensor } from "./gpu/graph.ts";
import { wgsl } from "./gpu/wgsl.ts";
import { type Block, blockShader, blockTile, isWhole, leastDepth } from "./matmul_block.ts";
import { FEW_ROWS, fewCandidates } from "./matmul_few.ts";
import scalar from "./matmul_scalar.wgsl" with { type: "text" };
import {
  elementDeclarations,
  type Epilogue,
  type Form,
  type Formats,
  type Source,
  storeElement,
} from "./matmul_shader.ts";
import tile from "./matmul_tile.wgsl" with { type: "text" };
import { UNPACKING } from "./unpacking.ts";

/** A tensor, f32 or packed halves, seen as rows; row 0 of the matrix is row `row` of the tensor. */
export interface Matrix {
  readonly tensor: Tensor | Scratch;
  /** Default 0. Where it isn't, a row before it ends at a multiple of 256 bytes. */
  readonly row?: number;
}

/** C (m, n) = A B, or + bias, or added to C, in f32. The tensors' rows may be longer than the extents. */
export interface Product extends Epilogue {
  readonly form: Form;
  readonly a: Matrix;
  readonly b: Matrix;
  readonly c: Matrix;
  readonly m: number;
  readonly n: number;
  readonly k: number;
  /** Bound after C where `bias` is true. */
  readonly biasTensor?: Tensor;
}

interface Kernel {
  readonly name: string;
  readonly source: Source;
  /** Rows and columns of the result one workgroup makes. */
  readonly tile: readonly [rows: number, columns: number];
  /** Steps of the inner dimension that the loop takes at once: a part of the product starts at a multiple of them. */
  readonly depth: number;
  /** Loop iterations of an invocation for one step of the inner dimension. */
  readonly iterations: number;
  shader(epilogue: Epilogue): string;
}

/** A part of a product: ranges of its rows, columns and inner dimension. */
interface Part {
  readonly m: Range;
  readonly n: Range;
  readonly k: Range;
}
type Range = readonly [from: number, to: number];

/** Parts start at multiples of this, so that slices of any matrix start at multiples of 256 bytes. */
const ROW_STEP = 64;

/** A texture with longer rows than this is slow to walk down: the operand is copied by ranges of columns. */
const WALKED_BYTES = { nn: 3072, tn: 4096 };

/** Candidate dispatch lists of a product, the best guess for the adapter first; the last is the plainest. */
export function matmulCandidates(product: Product, device: Capabilities): Dispatch[][] {
  const others = kernelsFor(product, device).map((kernel) => dispatches(product, kernel, device));
  const { form, m, a } = product;
  const few = form === "tn" || a.tensor.dtype !== "f32" ? [] : fewCandidates({ ...product, form }, device);
  // Of transposed weights, rows shared by shuffles beat lanes along the inner dimension from three rows on (LOG.md).
  if (!device.cpu || form === "nn" || m <= 2) return [...few, ...others];
  return [...others.slice(0, 1), ...few, ...others.slice(1)];
}

/**
 * Candidates of an op made of several products and other dispatches: candidate i uses candidate i of each product, or its
 * last. `make` is called once a candidate; the last is to be the plainest.
 */
export function withMatmuls(
  device: Capabilities,
  make: (matmul: (product: Product) => Dispatch[], plainest: boolean) => readonly Dispatch[],
): (readonly Dispatch[])[] {
  const candidates: (readonly Dispatch[])[] = [];
  for (let index = 0, most = 1; index < most; index++) {
    const matmul = (product: Product) => {
      const kernels = kernelsFor(product, device);
      most = Math.max(most, kernels.length);
      return dispatches(product, kernels[Math.min(index, kernels.length - 1)], device);
    };
    candidates.push(make(matmul, index > 0 && index === most - 1));
  }
  return candidates;
}

function kernelsFor(product: Product, device: Capabilities): Kernel[] {
  const lanes = device.subgroupSize;
  const register = (source: Source, shared: boolean) =>
    blocks(product, source, shared ? lanes : 1, device.cpu).map(blockKernel);
  const texture = fitsTextures(product)
    ? [...(lanes > 0 ? register("texture", true) : []), ...register("texture", false)]
    : [];
  const buffer = [...(lanes > 0 ? register("buffer", true) : []), ...register("buffer", false)];
  const tile = tileKernel(product);
  const last = scalarKernel(product);
  if (!device.cpu) return [tile, ...buffer.reverse(), ...texture, last];
  return [...texture, ...buffer, tile, last];
}

/** Register blocks that suit a product, for the adapters they were measured on or meant for (LOG.md). */
function blocks(product: Product, source: Source, lanes: number, cpu: boolean): Block[] {
  const { form, m, n, k, a, b, c } = product;
  const formats = formatsOf(product);
  const pieces = [a, b].map(({ tensor }) => stride(tensor) / UNPACKING[tensor.dtype as FloatType].weights);
  if (![n / 4, stride(c.tensor) / 4, ...pieces].every(Number.isInteger)) return [];
  const shapes = lanes > 1 ? sharing(form, formats, m, lanes) : alone(form, formats, source, cpu);
  const seen = new Set<string>();
  return shapes.flatMap(([rows, vectors, depth]) => {
    const workgroup: Block["workgroup"] = lanes > 1 ? [lanes, 1] : cpu ? [8, 1] : [8, 8];
    const block = { form, formats, source, lanes, rows, vectors, workgroup };
    const least = leastDepth(block);
    const fitting = [Math.max(depth, least), least].map((depth): Block => ({ ...block, depth }))
      .find((block) => isWhole(block) && (form === "tn" || k % block.depth === 0));
    const name = JSON.stringify(fitting);
    if (fitting === undefined || seen.has(name)) return [];
    seen.add(name);
    return [fitting];
  });
}

/** Rows, vec4 columns and steps of the inner dimension that an invocation takes at once. */
type Shape = readonly [rows: number, vectors: number, depth: number];

function sharing(form: Form, formats: Formats, m: number, lanes: number): readonly Shape[] {
  const packed = formats.b !== "f32";
  const usual = SHARING[form][packed ? "packed" : "f32"];
  if (form === "tn" || m > FEW_ROWS) return usual;
  const rows = powerOfTwo(m);
  const depth = leastDepth({ form, formats, lanes, rows });
  // The loop's body must stay below about 1,000 multiply-adds (LOG.md).
  const most = Math.floor(256 / (rows * Math.max(8, depth)));
  const vectors = form === "nt" ? 1 : Math.max(packed ? 2 : 1, Math.min(4, most));
  return [[rows, vectors, 8], ...usual];
}

/** By whether B is packed, the best first. */
const SHARING: Readonly<Record<Form, Readonly<Record<"f32" | "packed", readonly Shape[]>>>> = {
  nn: { f32: [[16, 2, 8]], packed: [[16, 2, 4], [8, 4, 8]] },
  nt: { f32: [[32, 1, 8]], packed: [[24, 1, 8], [32, 1, 8]] },
  tn: { f32: [[32, 2, 2]], packed: [[32, 2, 2]] },
};

function alone(form: Form, formats: Formats, source: Source, cpu: boolean): readonly Shape[] {
  if (cpu) return [source === "texture" ? [16, 2, 4] : [8, 2, 4]];
  const rows = form === "tn" ? UNPACKING[formats.a].weights : 4;
  return [[rows, form !== "nt" && formats.b !== "f32" ? 2 : 1, 4]];
}

function blockKernel(block: Block): Kernel {
  const { formats, source, lanes, rows, vectors, depth } = block;
  return {
    name: `${formatsName(formats)}${source} ${rows}x${4 * vectors}${lanes > 1 ? ` shared by ${lanes}` : ""} k${depth}`,
    source,
    tile: blockTile(block),
    depth,
    iterations: 1 / depth,
    shader: (epilogue) => blockShader(block, epilogue),
  };
}

function formatsOf({ a, b }: Product): Formats {
  return { a: a.tensor.dtype as FloatType, b: b.tensor.dtype as FloatType };
}

function formatsName({ a, b }: Formats): string {
  return a === "f32" && b === "f32" ? "" : `${a} by ${b} `;
}

function tileKernel(product: Product): Kernel {
  // Of 16 steps: one iteration round them, four that load, 16 that multiply; leaving a loop is one too.
  return {
    name: `${formatsName(formatsOf(product))}tile 64x64`,
    source: "buffer",
    tile: [64, 64],
    depth: 16,
    iterations: 23 / 16,
    shader: (epilogue) => plain(product, tile, epilogue),
  };
}

function scalarKernel(product: Product): Kernel {
  return {
    name: `${formatsName(formatsOf(product))}scalar`,
    source: "buffer",
    tile: [8, 8],
    depth: 1,
    iterations: 1,
    shader: (epilogue) => plain(product, scalar, epilogue),
  };
}

function plain(product: Product, source: string, epilogue: Epilogue): string {
  const { form } = product;
  return wgsl(
    `${elementDeclarations(formatsOf(product), epilogue)}
fn store(row: u32, column: u32, value: f32) { ${storeElement("row", "column", "value", epilogue)} }
${source}`,
    { TRANSPOSE_A: form === "tn", TRANSPOSE_B: form === "nt" },
  );
}

function powerOfTwo(size: number): number {
  return 2 ** Math.ceil(Math.log2(size));
}

function rowBytes(tensor: Tensor | Scratch): number {
  return byteLength(tensor) / tensor.shape[0];
}

function elementBytes({ dtype }: Tensor | Scratch): number {
  return 16 / UNPACKING[dtype as FloatType].weights;
}

/** Elements of a row of the first dimension, with the padding of packed ones. */
function stride(tensor: Tensor | Scratch): number {
  return rowBytes(tensor) / elementBytes(tensor);
}

/** A copy to a texture takes rows of a multiple of 256 bytes. */
function fitsTextures({ a, b }: Product): boolean {
  return rowBytes(a.tensor) % 256 === 0 && rowBytes(b.tensor) % 256 === 0;
}

function dispatches(product: Product, kernel: Kernel, device: Capabilities): Dispatch[] {
  const shaders = new Map<boolean, string>();
  return parts(product, kernel, device).map((part) => {
    const first = part.k[0] === 0;
    const epilogue = { bias: product.bias && first, accumulate: product.accumulate || !first };
    if (!shaders.has(first)) shaders.set(first, kernel.shader(epilogue));
    return dispatch(product, part, kernel, shaders.get(first)!, epilogue.bias);
  });
}

function parts({ form, a, b, c, m, n, k }: Product, kernel: Kernel, device: Capabilities): Part[] {
  const { maxStorageBufferBindingSize, maxTextureDimension2D, maxComputeWorkgroupsPerDimension } = device.limits;
  const bufferRows = ({ tensor }: Matrix) => Math.floor(maxStorageBufferBindingSize / rowBytes(tensor));
  const texture = kernel.source === "texture";
  const rows = texture ? () => maxTextureDimension2D : bufferRows;
  const columns = ({ tensor }: Matrix) => texture ? 16 / elementBytes(tensor) * maxTextureDimension2D : Infinity;
  const walked = (operand: Matrix) =>
    texture && form !== "nt"
      ? Math.min(columns(operand), WALKED_BYTES[form] / elementBytes(operand.tensor))
      : columns(operand);
  const inner = form === "nn"
    ? Math.min(columns(a), rows(b))
    : form === "nt"
    ? Math.min(columns(a), columns(b))
    : Math.min(rows(a), rows(b));
  const [tileRows, tileColumns] = kernel.tile;
  const groups = maxComputeWorkgroupsPerDimension;
  const most = {
    m: Math.min(form === "tn" ? walked(a) : rows(a), bufferRows(c), groups * tileRows),
    n: Math.min(form === "nt" ? rows(b) : walked(b), groups * tileColumns),
    k: Math.min(inner, Math.floor(device.loopIterations / kernel.iterations)),
  };
  const steps = Math.max(ROW_STEP, kernel.depth);
  return cut(m, most.m).flatMap((m) =>
    cut(n, most.n).flatMap((n) => cut(k, most.k, steps).map((k): Part => ({ m, n, k })))
  );
}

/** Even ranges of at most `most`, but for the last starting and ending at multiples of `unit`. */
function cut(size: number, most: number, unit = ROW_STEP): Range[] {
  if (size <= most) return [[0, size]];
  if (most < unit) throw new RangeError(`Cannot multiply: the adapter serves ${most} rows at once, ${unit} are needed`);
  const count = Math.ceil(size / (Math.floor(most / unit) * unit));
  const step = Math.ceil(size / count / unit) * unit;
  return Array.from({ length: Math.ceil(size / step) }, (_, i) => [i * step, Math.min(size, (i + 1) * step)]);
}

function dispatch(product: Product, part: Part, kernel: Kernel, shader: string, bias: boolean): Dispatch {
  const { form, a, b, c } = product;
  const [rowsA, columnsA] = form === "tn" ? [part.k, part.m] : [part.m, part.k];
  const [rowsB, columnsB] = form === "nt" ? [part.n, part.k] : [part.k, part.n];
  const texture = kernel.source === "texture";
  const sizes = [part.m, part.n, part.k].map(([from, to]) => to - from);
  const columns = [texture ? 0 : columnsA[0], texture ? 0 : columnsB[0], part.n[0]];
  return {
    label: `matmul ${form} ${kernel.name}`,
    wgsl: shader,
    workgroups: [Math.ceil(sizes[1] / kernel.tile[1]), Math.ceil(sizes[0] / kernel.tile[0]), 1],
    bindings: [
      texture ? textured(a, rowsA, columnsA) : buffered(a, rowsA, "read"),
      texture ? textured(b, rowsB, columnsB) : buffered(b, rowsB, "read"),
      buffered(c, part.m, "read_write"),
      ...(bias ? [{ tensor: product.biasTensor!, access: "read" } as const] : []),
    ],
    uniforms: [...sizes, ...[a, b, c].map(({ tensor }) => stride(tensor)), ...columns],
  };
}

function buffered({ tensor, row = 0 }: Matrix, [from, to]: Range, access: Binding["access"]): Binding {
  return { tensor, access, rows: [row + from, row + to] };
}

function textured({ tensor, row = 0 }: Matrix, [from, to]: Range, columns: Range): Binding {
  const rowLength = stride(tensor);
  const whole = columns[0] === 0 && columns[1] === rowLength;
  const { texture } = UNPACKING[tensor.dtype as FloatType];
  const view = { texture, rowLength, rows: [row + from, row + to] } as const;
  return { tensor, access: "read", as: whole ? view : { ...view, columns } };
}
