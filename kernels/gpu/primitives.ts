/** The two operations that differentiation and planning themselves need: fill with a constant, add in place. */
import { apply, count, type Dispatch, formatType, type Graph, type Op, type Tensor } from "./graph.ts";
import { f32, grid, GRID_WIDTH, wgsl } from "./wgsl.ts";

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
@group(0) @binding(0) var<storage, read_write> sum: array<vec4f>;
@group(0) @binding(1) var<storage, read> x: array<vec4f>;
@group(0) @binding(2) var<uniform> u: Uniforms;
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let i = (group.x + group.y * GRID_WIDTH) * WORKGROUP + lane;
  if (i < u.count) { sum[i] = sum[i] + x[i]; }
}`;

const fillOp: Op<{ shape: readonly number[]; value: number }> = {
  name: "fill",
  infer: (_, { shape }) => [{ shape, dtype: "f32" }],
  kernels({ outputs: [x], attrs }) {
    const code = wgsl(FILL, { WORKGROUP, GRID_WIDTH, VALUE: { f32: attrs.value } });
    return [[{
      label: `fill ${f32(attrs.value)}`,
      wgsl: code,
      workgroups: grid(Math.ceil(count(x) / WORKGROUP)),
      bindings: [{ tensor: x, access: "read_write" }],
      uniforms: [count(x)],
    }]];
  },
  cost: ({ outputs: [x] }) => ({ flops: 0, bytes: 4 * count(x) }),
};

const accumulateOp: Op<undefined> = {
  name: "accumulate",
  infer([sum, x]) {
    if (count(sum) !== count(x) || sum.dtype !== "f32" || x.dtype !== "f32") {
      throw new RangeError(`Cannot accumulate ${formatType(x)} into ${formatType(sum)}: counts or types differ`);
    }
    return [sum];
  },
  kernels({ inputs: [, x], outputs: [sum] }, { limits }) {
    const code = wgsl(ADD, { WORKGROUP, GRID_WIDTH });
    const rowBytes = 4 * count(x) / sum.shape[0];
    const step = rowSlice(rowBytes, limits.maxStorageBufferBindingSize, limits.minStorageBufferOffsetAlignment);
    const dispatches: Dispatch[] = [];
    for (let from = 0; from < sum.shape[0]; from += step) {
      const rows = [from, Math.min(sum.shape[0], from + step)] as const;
      const vectors = Math.ceil((rows[1] - rows[0]) * rowBytes / 16);
      dispatches.push({
        label: "accumulate",
        wgsl: code,
        workgroups: grid(Math.ceil(vectors / WORKGROUP)),
        bindings: [{ tensor: sum, access: "read_write", rows }, { tensor: x, access: "read", rows }],
        uniforms: [vectors],
      });
    }
    return [dispatches];
  },
  cost: ({ outputs: [sum] }) => ({ flops: count(sum), bytes: 12 * count(sum) }),
  inPlace: () => ({ 0: 0 }),
};

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
  return apply(accumulateOp, [sum, x], undefined)[0];
}
