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
import { range, wgsl } from "./gpu/wgsl.ts";

/** Rows that one invocation adds up before the partial sums are added. */
const BLOCK = 64;

/** Vectors of a row that an invocation adds up: a CPU driver waits for memory unless a row's lines are read together. */
const HELD = { cpu: 8, gpu: 1 };

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

/**
 * Sums of columns over blocks of rows, one block a workgroup row; WIDTH counts elements of a row. Long columns go in two
 * passes: blocks of x to partial sums, then all partial sums to the result.
 */
function shader(element: "f32" | "vec4f", held: number, constants: Parameters<typeof wgsl>[1]): string {
  const each = (line: (j: number, place: string) => string) =>
    range(held).map((j) => line(j, `column + ${j}u * WORKGROUP`)).join("\n  ");
  // What is loaded past a row's end is dropped.
  return `${wgsl(`alias Element = ${element};`, constants)}
struct Uniforms { rows: u32, block: u32, first_block: u32 }
@group(0) @binding(0) var<storage, read> x: array<Element>;
@group(0) @binding(1) var<storage, read_write> sums: array<Element>;
@group(0) @binding(2) var<uniform> u: Uniforms;
fn store(column: u32, block: u32, sum: Element) {
  if (column >= WIDTH) { return; }
  let place = (u.first_block + block) * WIDTH + column;
  sums[place] = select(Element(), sums[place], ACCUMULATE) + sum;
}
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let column = group.x * ${held}u * WORKGROUP + lane;
  let first = group.y * u.block;
  ${each((j) => `var sum${j} = Element();`)}
  for (var row = first; row < min(first + u.block, u.rows); row++) {
    ${each((j, place) => `sum${j} += x[row * WIDTH + ${place}];`)}
  }
  ${each((j, place) => `store(${place}, group.y, sum${j});`)}
}`;
}

function dispatches(x: Tensor, sums: Tensor, lanes: 1 | 4, { accumulate }: Attrs, device: Capabilities): Dispatch[] {
  const [rows, columns] = x.shape;
  const { maxStorageBufferBindingSize, maxComputeWorkgroupsPerDimension } = device.limits;
  const width = columns / lanes;
  const workgroup = device.cpu ? 8 : 64;
  const held = Math.min(device.cpu ? HELD.cpu : HELD.gpu, Math.ceil(width / workgroup));
  const pass = (from: Tensor | Scratch, range: readonly [number, number], to: Tensor | Scratch, block: number) => {
    const blocks = Math.ceil((range[1] - range[0]) / block);
    const constants = { WORKGROUP: workgroup, WIDTH: width, ACCUMULATE: accumulate && to === sums };
    return {
      label: "column_sum",
      wgsl: shader(lanes === 4 ? "vec4f" : "f32", held, constants),
      workgroups: [Math.ceil(width / (held * workgroup)), blocks, 1],
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
