/**
 * Turns a matrix product into dispatches: how it is cut where an operand passes a binding or a texture, and what is bound.
 * Other ops use it for products over scratch memory and rows of tensors. It knows no graph and no gradient.
 */
import type { FloatType } from "./cast.ts";
import type { Binding, Capabilities, Dispatch } from "./gpu/graph.ts";
import { fewCandidates } from "./matmul_few.ts";
import {
  elementBytes,
  type Kernel,
  kernelsFor,
  type Matrix,
  type Product,
  rowBytes,
  stride,
  TEXTURE_ROW,
} from "./matmul_kernels.ts";
import { finish, padded, Workspace } from "./matmul_passes.ts";
import type { Epilogue } from "./matmul_shader.ts";
import { UNPACKING } from "./unpacking.ts";

export type { Matrix, Product } from "./matmul_kernels.ts";

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
  const others = kernelsFor(product, device)
    .map((kernel) => dispatches(product, kernel, device, new Workspace()))
    .filter((made) => made !== null);
  const few = fewDispatches(product, device);
  // Of transposed weights, rows shared by shuffles beat lanes along the inner dimension from three rows on (LOG.md).
  if (!device.cpu || product.form === "nn" || product.m <= 2) return [...few, ...others];
  return [...others.slice(0, 1), ...few, ...others.slice(1)];
}

/** Kernels for few rows know bias and running sums; another pass does the rest. */
function fewDispatches(product: Product, device: Capabilities): Dispatch[][] {
  const { form, a, bias, residual, activated, accumulate = false } = product;
  if (form === "tn" || a.tensor.dtype !== "f32") return [];
  const few = { ...product, form, bias: bias !== undefined, biasTensor: bias, accumulate };
  const made = fewCandidates(few, device);
  if (!residual && !activated) return made;
  const rest = finish({ ...product, bias: undefined, accumulate: true }, null, 0);
  return made.map((list) => [...list, rest]);
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
    const workspace = new Workspace();
    const matmul = (product: Product) => {
      const made = kernelsFor(product, device).filter((kernel) => kernel.splits === 1);
      most = Math.max(most, made.length);
      return dispatches(product, made[Math.min(index, made.length - 1)], device, workspace)!;
    };
    candidates.push(make(matmul, index > 0 && index === most - 1));
  }
  return candidates;
}

/** Null where workgroups can't split the inner dimension, as the product must be cut. */
function dispatches(
  product: Product,
  kernel: Kernel,
  device: Capabilities,
  workspace: Workspace,
): Dispatch[] | null {
  const { operands, before } = readable(product, kernel, device, workspace);
  const pieces = parts(operands, kernel, device);
  if (kernel.splits > 1) return pieces.length > 1 ? null : split(operands, kernel, device, workspace);
  const shaders = new Map<string, string>();
  const made = pieces.map((part) => {
    const epilogue = epilogueOf(product, part);
    const key = JSON.stringify(epilogue);
    if (!shaders.has(key)) shaders.set(key, kernel.shader(epilogue));
    return dispatch(operands, part, kernel, shaders.get(key)!, epilogue);
  });
  return [...before, ...made];
}

/** The product with its operands padded where the kernel reads textures that couldn't be copied from them. */
function readable(product: Product, kernel: Kernel, device: Capabilities, workspace: Workspace) {
  const { form, m, n, k } = product;
  const before: Dispatch[] = [];
  const readableOne = (name: "a" | "b", rows: number) => {
    const matrix = product[name];
    if (kernel.source === "buffer" || rowBytes(matrix.tensor) % TEXTURE_ROW === 0) return matrix;
    const made = padded(matrix, rows, name, workspace, device);
    before.push(...made.dispatches);
    return made.matrix;
  };
  const a = readableOne("a", form === "tn" ? k : m);
  const b = readableOne("b", form === "nt" ? n : k);
  return { operands: { ...product, a, b }, before };
}

const NO_EPILOGUE: Epilogue = { bias: false, residual: false, accumulate: false, activation: null };

/** What is added comes with the first part of the inner dimension, the activation with the last. */
function epilogueOf(product: Product, { k: [from, to] }: Part): Epilogue {
  const first = from === 0;
  return {
    bias: first && product.bias !== undefined,
    residual: first && product.residual !== undefined,
    accumulate: !first || product.accumulate === true,
    activation: to === product.k ? product.activated?.activation ?? null : null,
  };
}

/** Partial sums of ranges of the inner dimension side by side, then their sum. */
function split(product: Product, kernel: Kernel, { limits }: Capabilities, workspace: Workspace): Dispatch[] | null {
  const { m, n, k, c } = product;
  const { splits, depth } = kernel;
  if (4 * splits * m * n > limits.maxStorageBufferBindingSize || stride(c.tensor) !== n) return null;
  const partial = workspace.take("partial", [splits * m, n]);
  const steps = Math.ceil(k / splits / depth) * depth;
  const whole: Part = { m: [0, m], n: [0, n], k: [0, k] };
  const count = Math.ceil(k / steps);
  const made = dispatch({ ...product, c: { tensor: partial } }, whole, kernel, kernel.shader(NO_EPILOGUE), NO_EPILOGUE);
  const [x, y] = made.workgroups;
  const [, , out] = made.bindings;
  const bindings = [...made.bindings.slice(0, 2), { ...out, rows: [0, splits * m] as const }];
  const uniforms = [...made.uniforms!.slice(0, -1), steps];
  return [{ ...made, workgroups: [x, y, count], bindings, uniforms }, finish(product, partial, count)];
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

/** Ranges of at most `most`, but for the last starting and ending at multiples of `unit`. */
function cut(size: number, most: number, unit = ROW_STEP): Range[] {
  if (size <= most) return [[0, size]];
  if (most < unit) throw new RangeError(`Cannot multiply: the adapter serves ${most} rows at once, ${unit} are needed`);
  const step = Math.ceil(size / partCount(size, Math.floor(most / unit) * unit, unit) / unit) * unit;
  return Array.from({ length: Math.ceil(size / step) }, (_, i) => [i * step, Math.min(size, (i + 1) * step)]);
}

/** The fewest parts, or up to twice as many where all are then equal: textures of one shape share memory. */
export function partCount(size: number, most: number, unit: number): number {
  const fewest = Math.ceil(size / most);
  for (let count = fewest; count <= 2 * fewest; count++) if (size % (count * unit) === 0) return count;
  return fewest;
}

function dispatch(product: Product, part: Part, kernel: Kernel, shader: string, epilogue: Epilogue): Dispatch {
  const { form, a, b, c, bias, residual, activated } = product;
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
      ...(epilogue.bias ? [{ tensor: bias!, access: "read" } as const] : []),
      ...(epilogue.residual ? [buffered({ tensor: residual!, row: c.row }, part.m, "read")] : []),
      ...(epilogue.activation ? [buffered({ tensor: activated!.tensor, row: c.row }, part.m, "read_write")] : []),
    ],
    uniforms: [...sizes, ...[a, b, c].map(({ tensor }) => stride(tensor)), ...columns, sizes[2]],
  };
}

function buffered({ tensor, row = 0 }: Matrix, [from, to]: Range, access: Binding["access"]): Binding {
  return { tensor, access, rows: [row + from, row + to] };
}

function textured({ tensor, row = 0 }: Matrix, [from, to]: Range, columns: Range): Binding {
  const { texture } = UNPACKING[tensor.dtype as FloatType];
  const rowLength = stride(tensor);
  const end = Math.min(rowLength, Math.ceil(columns[1] / ROW_STEP) * ROW_STEP);
  const whole = columns[0] === 0 && end === rowLength;
  const view = { texture, rowLength, rows: [row + from, row + to] } as const;
  return { tensor, access: "read", as: whole ? view : { ...view, columns: [columns[0], end] } };
}
