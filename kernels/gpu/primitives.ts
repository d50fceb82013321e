/** The operations that differentiation and programs themselves need: fill, clear and add in place. */
import {
  apply,
  type Binding,
  byteLength,
  type Capabilities,
  count,
  type Dispatch,
  formatType,
  type Graph,
  type Op,
  reshape,
  type Tensor,
} from "./graph.ts";
import { grid, GRID_WIDTH, wgsl } from "./wgsl.ts";

const WORKGROUP = 64;

const FILL = `
struct Uniforms { count: u32 }
@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<uniform> u: Uniforms;
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let i = (group.x + group.y * GRID_WIDTH) * WORKGROUP + lane;
  if (i < u.count) { x[i] = VALUE; }
}`;

const ADD = `
struct Uniforms { count: u32 }
@group(0) @binding(0) var<storage, read_write> sum: array<T>;
@group(0) @binding(1) var<storage, read> x: array<T>;
@group(0) @binding(2) var<uniform> u: Uniforms;
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let i = (group.x + group.y * GRID_WIDTH) * WORKGROUP + lane;
  if (i < u.count) { sum[i] = sum[i] + x[i]; }
}`;

/** Writes `value` into all of a tensor, by slices where it passes the binding limit. */
function fills(x: Tensor, value: number, device: Capabilities): Dispatch[] {
  return slices(x, device).map(({ rows, elements }) => ({
    label: "fill",
    wgsl: wgsl(FILL, { WORKGROUP, GRID_WIDTH, VALUE: { f32: value } }),
    workgroups: grid(Math.ceil(elements / WORKGROUP)),
    bindings: [write(x, rows)],
    uniforms: [elements],
  }));
}

const fillOp: Op<{ shape: readonly number[]; value: number }> = {
  name: "fill",
  infer: (_, { shape }) => [{ shape, dtype: "f32" }],
  kernels: ({ outputs: [x], attrs }, device) => [fills(x, attrs.value, device)],
  cost: ({ outputs: [x] }) => ({ flops: 0, bytes: 4 * count(x) }),
};

const zeroOp: Op<undefined> = {
  name: "zero",
  infer: ([x]) => [x],
  kernels: ({ outputs: [x] }, device) => [fills(x, 0, device)],
  cost: ({ outputs: [x] }) => ({ flops: 0, bytes: 4 * count(x) }),
  inPlace: () => ({ 0: 0 }),
};

const accumulateOp: Op<undefined> = {
  name: "accumulate",
  infer([sum, x]) {
    if (sum.shape.join() !== x.shape.join() || sum.dtype !== "f32" || x.dtype !== "f32") {
      throw new RangeError(`Cannot accumulate ${formatType(x)} into ${formatType(sum)}: shapes or types differ`);
    }
    return [sum];
  },
  kernels: ({ inputs: [, x], outputs: [sum] }, device) => [
    slices(sum, device).map(({ rows, elements }) => {
      const lanes = elements % 4 === 0 ? 4 : 1;
      return {
        label: "accumulate",
        wgsl: `alias T = ${lanes === 4 ? "vec4f" : "f32"};\n${wgsl(ADD, { WORKGROUP, GRID_WIDTH })}`,
        workgroups: grid(Math.ceil(elements / lanes / WORKGROUP)),
        bindings: [write(sum, rows), read(x, rows)],
        uniforms: [elements / lanes],
      };
    }),
  ],
  cost: ({ outputs: [sum] }) => ({ flops: count(sum), bytes: 12 * count(sum) }),
  inPlace: () => ({ 0: 0 }),
};

/** A tensor, or rows of its first dimension, bound to be read. */
export function read(tensor: Binding["tensor"], rows?: Binding["rows"]): Binding {
  return { tensor, access: "read", rows };
}

/** A tensor, or rows of its first dimension, bound to be written, and read where the shader does. */
export function write(tensor: Binding["tensor"], rows?: Binding["rows"]): Binding {
  return { tensor, access: "read_write", rows };
}

/** Rows of the first dimension that one binding takes, with their elements. */
export function slices(x: Tensor, { limits }: Capabilities): { rows: readonly [number, number]; elements: number }[] {
  const [rows] = x.shape;
  const width = count(x) / rows;
  const bytes = byteLength(x);
  const step = bytes <= limits.maxStorageBufferBindingSize
    ? rows
    : rowSlice(bytes / rows, limits.maxStorageBufferBindingSize, limits.minStorageBufferOffsetAlignment);
  return Array.from({ length: Math.ceil(rows / step) }, (_, i) => {
    const to = Math.min(rows, (i + 1) * step);
    return { rows: [i * step, to], elements: (to - i * step) * width };
  });
}

/** The most rows whose bytes fit a binding and whose slices start at aligned offsets. */
export function rowSlice(rowBytes: number, bindingLimit: number, alignment: number): number {
  let step = 1;
  while (step * rowBytes % alignment !== 0) step *= 2;
  if (step * rowBytes > bindingLimit) {
    throw new RangeError(`Cannot bind rows of ${rowBytes} bytes: the adapter binds ${bindingLimit}`);
  }
  return Math.floor(bindingLimit / (step * rowBytes)) * step;
}

/** A tensor of one value. */
export function fill(graph: Graph, shape: readonly number[], value: number): Tensor {
  return graph.apply(fillOp, [], { shape, value })[0];
}

/** `sum + x` in the memory of `sum`; shapes may differ, counts may not. */
export function accumulate(sum: Tensor, x: Tensor): Tensor {
  return apply(accumulateOp, [sum, reshape(x, sum.shape)], undefined)[0];
}

/** Zeroes in the memory of `x`. */
export function zero(x: Tensor): Tensor {
  return apply(zeroOp, [x], undefined)[0];
}
