/**
 * Turns a matrix product into dispatches: which kernels fit its sizes and the adapter, in which order, and how the product
 * is cut where an operand passes a binding or a texture. Other ops use it for products over scratch memory and rows of
 * tensors. It knows no graph and no gradient.
 */
import type { Binding, Capabilities, Dispatch, Scratch, Tensor } from "./gpu/graph.ts";
import { wgsl } from "./gpu/wgsl.ts";
import { type Block, blockShader, blockTile, groupDepth } from "./matmul_block.ts";
import { FEW_ROWS, fewCandidates } from "./matmul_few.ts";
import scalar from "./matmul_scalar.wgsl" with { type: "text" };
import { declarations, type Epilogue, type Form, type Source, storeElement } from "./matmul_shader.ts";
import tile from "./matmul_tile.wgsl" with { type: "text" };

/** A tensor seen as rows of `stride` elements; row 0 of the matrix is row `row` of the tensor. */
export interface Matrix {
  readonly tensor: Tensor | Scratch;
  /** Default 0. Where it isn't, row * stride must be a multiple of 64. */
  readonly row?: number;
}

/** C (m, n) = A B, or + bias, or added to C. The tensors' rows may be longer than the extents. */
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

/** Parts start at multiples of this, so that slices of any f32 matrix start at multiples of 256 bytes. */
const ROW_STEP = 64;

/** A texture row of more columns than this is slow to walk down: the operand is copied by ranges of columns. */
const COLUMNS_WALKED = { nn: 768, tn: 1024 };

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
  const { form } = product;
  const lanes = device.subgroupSize;
  const register = (source: Source, shared: boolean) =>
    blocks(product, source, shared ? lanes : 1, device.cpu).map((block) => blockKernel(form, block));
  const texture = fitsTextures(product)
    ? [...(lanes > 0 ? register("texture", true) : []), ...register("texture", false)]
    : [];
  const buffer = [...(lanes > 0 ? register("buffer", true) : []), ...register("buffer", false)];
  const tile = tileKernel(form);
  const last = scalarKernel(form);
  if (!device.cpu) return [tile, ...buffer.reverse(), ...texture, last];
  return [...texture, ...buffer, tile, last];
}

/** Register blocks that suit a form, for the adapters they were measured on or meant for (LOG.md). */
function blocks({ form, m, n, k, a, b, c }: Product, source: Source, lanes: number, cpu: boolean): Block[] {
  const strides = [a, b, c].map(({ tensor }) => stride(tensor));
  if ([n, ...strides].some((size) => size % 4 !== 0)) return [];
  const shape = (rows: number, vectors: number, depth: number, workgroup: Block["workgroup"]): Block => {
    const block = { source, lanes, rows, vectors, depth: 0, workgroup };
    return { ...block, depth: form === "tn" ? depth : Math.max(depth, groupDepth(block)) };
  };
  const made = lanes > 1 ? sharing(form, m, lanes, shape) : alone(source, cpu, shape);
  return made.flatMap((block) => {
    if (form === "tn" || k % block.depth === 0) return [block];
    const shallow = { ...block, depth: groupDepth(block) };
    return k % shallow.depth === 0 ? [shallow] : [];
  });
}

type Shape = (rows: number, vectors: number, depth: number, workgroup: Block["workgroup"]) => Block;

function sharing(form: Form, m: number, lanes: number, shape: Shape): Block[] {
  const workgroup = [lanes, 1] as const;
  if (form === "tn") return [shape(32, 2, 2, workgroup)];
  const main = form === "nn" ? shape(16, 2, 8, workgroup) : shape(32, 1, 8, workgroup);
  if (m > FEW_ROWS) return [main];
  const rows = powerOfTwo(m);
  const depth = Math.max(8, 4 * lanes / rows);
  // The loop's body must stay below about 1,000 multiply-adds (LOG.md).
  const vectors = Math.max(1, Math.min(form === "nn" ? 4 : 1, Math.floor(256 / (rows * depth))));
  return [shape(rows, vectors, depth, workgroup), main];
}

function alone(source: Source, cpu: boolean, shape: Shape): Block[] {
  if (cpu) return [source === "texture" ? shape(16, 2, 4, [8, 1]) : shape(8, 2, 4, [8, 1])];
  return [shape(4, 1, 4, [8, 8])];
}

function blockKernel(form: Form, block: Block): Kernel {
  const { source, lanes, rows, vectors, depth } = block;
  return {
    name: `${source} ${rows}x${4 * vectors}${lanes > 1 ? ` shared by ${lanes}` : ""} k${depth}`,
    source,
    tile: blockTile(block),
    depth,
    iterations: 1 / depth,
    shader: (epilogue) => blockShader(form, block, epilogue),
  };
}

function tileKernel(form: Form): Kernel {
  // Of 16 steps: one iteration round them, four that load, 16 that multiply; leaving a loop is one too.
  return {
    name: "tile 64x64",
    source: "buffer",
    tile: [64, 64],
    depth: 16,
    iterations: 23 / 16,
    shader: (epilogue) => plain(form, tile, epilogue),
  };
}

function scalarKernel(form: Form): Kernel {
  return {
    name: "scalar",
    source: "buffer",
    tile: [8, 8],
    depth: 1,
    iterations: 1,
    shader: (epilogue) => plain(form, scalar, epilogue),
  };
}

function plain(form: Form, source: string, epilogue: Epilogue): string {
  return wgsl(
    `${declarations("f32", "buffer", epilogue)}
fn store(row: u32, column: u32, value: f32) { ${storeElement("row", "column", "value", epilogue)} }
${source}`,
    { TRANSPOSE_A: form === "tn", TRANSPOSE_B: form === "nt" },
  );
}

function powerOfTwo(size: number): number {
  return 2 ** Math.ceil(Math.log2(size));
}

/** Elements of a row of the first dimension. */
function stride(tensor: Tensor | Scratch): number {
  return tensor.shape.slice(1).reduce((product, size) => product * size, 1);
}

/** A copy to a texture takes rows of a multiple of 256 bytes. */
function fitsTextures({ a, b }: Product): boolean {
  return stride(a.tensor) % ROW_STEP === 0 && stride(b.tensor) % ROW_STEP === 0;
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
  const { limits } = device;
  const bufferRows = ({ tensor }: Matrix) => Math.floor(limits.maxStorageBufferBindingSize / (4 * stride(tensor)));
  const texture = kernel.source === "texture";
  const rows = texture ? () => limits.maxTextureDimension2D : bufferRows;
  const columns = texture ? 4 * limits.maxTextureDimension2D : Infinity;
  const walked = texture && form !== "nt" ? COLUMNS_WALKED[form] : Infinity;
  const groups = limits.maxComputeWorkgroupsPerDimension;
  const inner = form === "nn" ? Math.min(columns, rows(b)) : form === "nt" ? columns : Math.min(rows(a), rows(b));
  const most = {
    m: Math.min(form === "tn" ? Math.min(columns, walked) : rows(a), bufferRows(c), groups * kernel.tile[0]),
    n: Math.min(form === "nt" ? rows(b) : Math.min(columns, walked), groups * kernel.tile[1]),
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
  const view = { texture: "rgba32float", rowLength, rows: [row + from, row + to] } as const;
  return { tensor, access: "read", as: whole ? view : { ...view, columns } };
}
