/** Cutting and joining tensors by columns. It knows no meaning of the parts. */
import {
  apply,
  type Capabilities,
  count,
  type Dispatch,
  formatType,
  type Op,
  type Tensor,
  type TensorType,
} from "./gpu/graph.ts";
import { fill, read, rowSlice, write } from "./gpu/primitives.ts";
import { grid, GRID_WIDTH, wgsl } from "./gpu/wgsl.ts";

const WORKGROUP = 64;

const COPY = `
struct Uniforms { count: u32 }
@group(0) @binding(0) var<storage, read> x: array<T>;
@group(0) @binding(1) var<storage, read_write> y: array<T>;
@group(0) @binding(2) var<uniform> u: Uniforms;
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let i = (group.x + group.y * GRID_WIDTH) * WORKGROUP + lane;
  if (i >= u.count) { return; }
  y[i / WIDTH * Y_STRIDE + Y_OFFSET + i % WIDTH] = x[i / WIDTH * X_STRIDE + X_OFFSET + i % WIDTH];
}`;

/** Copies `width` columns between tensors of the same rows. */
function copies(
  label: string,
  device: Capabilities,
  [from, fromColumn]: readonly [Tensor, number],
  [to, toColumn]: readonly [Tensor, number],
  width: number,
): Dispatch[] {
  const lanes = [from.shape[1], to.shape[1], fromColumn, toColumn, width].every((size) => size % 4 === 0) ? 4 : 1;
  const code = wgsl(`alias T = ${lanes === 4 ? "vec4f" : "f32"};\n${COPY}`, {
    WORKGROUP,
    GRID_WIDTH,
    WIDTH: width / lanes,
    X_STRIDE: from.shape[1] / lanes,
    X_OFFSET: fromColumn / lanes,
    Y_STRIDE: to.shape[1] / lanes,
    Y_OFFSET: toColumn / lanes,
  });
  return rowRanges(from.shape, to.shape, device).map((rows) => {
    const elements = (rows[1] - rows[0]) * width / lanes;
    return {
      label,
      wgsl: code,
      workgroups: grid(Math.ceil(elements / WORKGROUP)),
      bindings: [read(from, rows), write(to, rows)],
      uniforms: [elements],
    };
  });
}

/** Rows of which both tensors' slices fit a binding and start at aligned offsets; one's columns divide the other's. */
function rowRanges(
  [rows, a]: readonly number[],
  [, b]: readonly number[],
  { limits }: Capabilities,
): (readonly [number, number])[] {
  const [less, more] = [Math.min(a, b), Math.max(a, b)];
  const limit = limits.maxStorageBufferBindingSize;
  if (4 * rows * more <= limit) return [[0, rows]];
  const step = rowSlice(4 * more, limit, limits.minStorageBufferOffsetAlignment * more / less);
  return Array.from({ length: Math.ceil(rows / step) }, (_, i) => [i * step, Math.min(rows, (i + 1) * step)] as const);
}

const splitOp: Op<{ readonly parts: number }> = {
  name: "split",
  infer([x], { parts }) {
    if (x.shape.length !== 2 || x.dtype !== "f32" || !(parts >= 1) || x.shape[1] % parts !== 0) {
      throw new RangeError(`Cannot split ${formatType(x)} into ${parts} parts: want (N, a multiple of ${parts}) f32`);
    }
    return Array.from({ length: parts }, () => ({ shape: [x.shape[0], x.shape[1] / parts], dtype: "f32" }));
  },
  kernels: ({ inputs: [x], outputs }, device) => [
    outputs.flatMap((part, i) => copies("split", device, [x, i * part.shape[1]], [part, 0], part.shape[1])),
  ],
  cost: ({ inputs: [x] }) => ({ flops: 0, bytes: 8 * count(x) }),
  vjp: ({ inputs: [x], outputs }, grads) => [
    concat(grads.map((grad, i) => grad ?? fill(x.graph, outputs[i].shape, 0))),
  ],
};

/** (N, P · C) → P tensors (N, C), by columns. */
export function split(x: Tensor, parts: number): readonly Tensor[] {
  return apply(splitOp, [x], { parts });
}

const concatOp: Op<undefined> = {
  name: "concat",
  infer(inputs) {
    const [rows, columns] = inputs[0].shape;
    const alike = ({ shape, dtype }: TensorType) =>
      shape.length === 2 && dtype === "f32" && shape.join() === inputs[0].shape.join();
    if (!inputs.every(alike)) {
      throw new RangeError(`Cannot join ${inputs.map(formatType).join(" and ")}: want (N, C) f32 of one shape`);
    }
    return [{ shape: [rows, inputs.length * columns], dtype: "f32" }];
  },
  kernels: ({ inputs, outputs: [y] }, device) => [
    inputs.flatMap((part, i) => copies("concat", device, [part, 0], [y, i * part.shape[1]], part.shape[1])),
  ],
  cost: ({ outputs: [y] }) => ({ flops: 0, bytes: 8 * count(y) }),
  vjp: ({ inputs }, [grad]) => split(grad!, inputs.length),
};

/** P tensors (N, C) → (N, P · C). */
export function concat(parts: readonly Tensor[]): Tensor {
  return apply(concatOp, parts, undefined)[0];
}
