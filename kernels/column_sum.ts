/** Sums over rows, in a fixed order: the gradient of a bias. */
import {
  apply,
  type Capabilities,
  count,
  type Dispatch,
  formatType,
  type Op,
  type Scratch,
  scratch,
  type Tensor,
} from "./gpu/graph.ts";
import { read, write } from "./gpu/primitives.ts";
import { wgsl } from "./gpu/wgsl.ts";
import source from "./column_sum.wgsl" with { type: "text" };

/** Rows that one invocation adds up before the partial sums are added. */
const BLOCK = 64;

interface Attrs {
  readonly accumulate: boolean;
}

/** (N, C) → (C), the sum of all rows; with `into` (C), added to it in its memory. */
export function columnSum(x: Tensor, into?: Tensor): Tensor {
  return apply(op, into === undefined ? [x] : [x, into], { accumulate: into !== undefined })[0];
}

const op: Op<Attrs> = {
  name: "column_sum",
  infer([x, into]) {
    const [, columns] = x.shape;
    if (x.shape.length !== 2 || x.dtype !== "f32") throw new RangeError(`Cannot sum columns of ${formatType(x)}`);
    if (into !== undefined && into.shape.join() !== `${columns}`) {
      throw new RangeError(`Cannot sum columns of ${formatType(x)} into ${formatType(into)}: it must be (${columns})`);
    }
    return [{ shape: [columns], dtype: "f32" }];
  },
  kernels({ inputs: [x], outputs: [sums], attrs }, device) {
    const vectors = x.shape[1] % 4 === 0 ? [dispatches(x, sums, 4, attrs, device)] : [];
    return [...vectors, dispatches(x, sums, 1, attrs, device)];
  },
  cost: ({ inputs: [x] }) => ({ flops: count(x), bytes: 4 * count(x) }),
  inPlace: ({ attrs }): Record<number, number> => attrs.accumulate ? { 0: 1 } : {},
};

function dispatches(x: Tensor, sums: Tensor, lanes: 1 | 4, { accumulate }: Attrs, device: Capabilities): Dispatch[] {
  const [rows, columns] = x.shape;
  const { maxStorageBufferBindingSize, maxComputeWorkgroupsPerDimension } = device.limits;
  const width = columns / lanes;
  const workgroup = device.cpu ? 8 : 64;
  const pass = (from: Tensor | Scratch, range: readonly [number, number], to: Tensor | Scratch, block: number) => {
    const blocks = Math.ceil((range[1] - range[0]) / block);
    const constants = { WORKGROUP: workgroup, WIDTH: width, ACCUMULATE: accumulate && to === sums };
    return {
      label: "column_sum",
      wgsl: `alias Element = ${lanes === 4 ? "vec4f" : "f32"};\n${wgsl(source, constants)}`,
      workgroups: [Math.ceil(width / workgroup), blocks, 1],
      bindings: [read(from, range), write(to)],
      uniforms: [range[1] - range[0], block, range[0] / block],
    } as const;
  };
  if (rows <= BLOCK) return [pass(x, [0, rows], sums, BLOCK)];
  const partial = scratch([Math.ceil(rows / BLOCK), columns]);
  const bound = Math.floor(maxStorageBufferBindingSize / (4 * columns));
  const step = Math.floor(Math.min(bound, maxComputeWorkgroupsPerDimension * BLOCK) / BLOCK) * BLOCK;
  const slices: Dispatch[] = [];
  for (let from = 0; from < rows; from += step) {
    slices.push(pass(x, [from, Math.min(rows, from + step)], partial, BLOCK));
  }
  return [...slices, pass(partial, [0, partial.shape[0]], sums, partial.shape[0])];
}
