/**
 * Layer norm (Ba, Kiros, Hinton 2016) and RMS norm (Zhang and Sennrich 2019), alone and fused with the residual addition
 * before them. They know rows of columns and no model. Statistics are two passes over a row, so that nothing cancels.
 */
import { columnSum } from "./column_sum.ts";
import { apply, type Call, type Capabilities, count, formatType, type Op, type Tensor } from "./gpu/graph.ts";
import { read, write } from "./gpu/primitives.ts";
import { f32, grid, GRID_WIDTH, wgsl } from "./gpu/wgsl.ts";

interface Norm {
  /** "layer" subtracts the mean, "rms" doesn't. */
  readonly kind: "layer" | "rms";
  readonly eps: number;
  /** Whether the first two inputs are added before. */
  readonly residual: boolean;
}

/** Rows whose contributions to the parameters' gradients one invocation adds up. */
const BLOCK = 32;

/** How the lanes of a row's workgroup add up: shuffles where a subgroup is trusted and cheap, else workgroup memory. */
function lanes(device: Capabilities): { readonly count: number; readonly total: string } {
  if (device.cpu && device.subgroupSize > 0) {
    const size = device.subgroupSize;
    const steps = Array.from({ length: Math.log2(size) }, (_, i) => `sum += subgroupShuffleXor(sum, ${1 << i}u);`);
    return {
      count: size,
      total: `fn total(lane: u32, x: T) -> f32 { var sum = dot(x, T(1.0)); ${steps.join(" ")} return sum; }`,
    };
  }
  return {
    count: 64,
    total: `var<workgroup> sums: array<f32, 64>;
fn total(lane: u32, x: T) -> f32 {
  workgroupBarrier();
  sums[lane] = dot(x, T(1.0));
  for (var half = 32u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (lane < half) { sums[lane] += sums[lane + half]; }
  }
  workgroupBarrier();
  return sums[0];
}`,
  };
}

/** What every shader here opens with. */
function preamble(columns: number, device: Capabilities, own: string): string {
  const vector = columns % 4 === 0 ? 4 : 1;
  const type = vector === 4 ? "alias T = vec4f;" : "alias T = f32;\nfn dot(a: f32, b: f32) -> f32 { return a * b; }";
  const { count: LANES, total } = lanes(device);
  const constants = { LANES, GRID_WIDTH, WIDTH: columns / vector, COLUMNS: { f32: columns } };
  return `${type}\nstruct Uniforms { rows: u32 }\n${wgsl(own, constants)}\n${total}`;
}

const MAIN = `@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let row = group.x + group.y * GRID_WIDTH;
  if (row >= u.rows) { return; }
  let base = row * WIDTH;`;

function forwardShader({ kind, eps, residual }: Norm, columns: number, device: Capabilities): string {
  const layer = kind === "layer";
  const names = [
    ...(residual ? ["read> x: array<T>", "read> skip: array<T>"] : ["read> x: array<T>"]),
    ...(layer ? ["read> weight: array<T>", "read> bias: array<T>"] : ["read> weight: array<T>"]),
    ...(residual ? ["read_write> sum: array<T>"] : []),
    "read_write> y: array<T>",
    "read_write> statistics: array<vec2f>",
  ];
  const value = residual ? "sum[base + i]" : "x[base + i]";
  return preamble(columns, device, declare(names)) + `
${MAIN}
  var mean = 0.0;
  ${residual ? "for (var i = lane; i < WIDTH; i += LANES) { sum[base + i] = x[base + i] + skip[base + i]; }" : ""}
  ${
    layer
      ? `var first = T(); for (var i = lane; i < WIDTH; i += LANES) { first += ${value}; }
  mean = total(lane, first) / COLUMNS;`
      : ""
  }
  var second = T();
  for (var i = lane; i < WIDTH; i += LANES) { let d = ${value} - mean; second += d * d; }
  let rstd = 1.0 / sqrt(total(lane, second) / COLUMNS + ${f32(eps)});
  for (var i = lane; i < WIDTH; i += LANES) {
    y[base + i] = (${value} - mean) * rstd * weight[i]${layer ? " + bias[i]" : ""};
  }
  if (lane == 0u) { statistics[row] = vec2f(mean, rstd); }
}`;
}

function declare(names: readonly string[]): string {
  return [...names, "uniform> u: Uniforms"].map((name, i) =>
    `@group(0) @binding(${i}) var<${name.startsWith("uniform") ? "" : "storage, "}${name};`
  ).join("\n");
}

const normOp: Op<Norm> = {
  name: "norm",
  infer(inputs, { kind, residual }) {
    const [x] = inputs;
    const columns = x.shape[1];
    const parameters = inputs.slice(residual ? 2 : 1);
    const alike = !residual || inputs[1].shape.join() === x.shape.join();
    if (x.shape.length !== 2 || !alike || parameters.some(({ shape }) => shape.join() !== `${columns}`)) {
      throw new RangeError(
        `Cannot norm ${inputs.map(formatType).join(", ")} (${kind}): want (N, C) and parameters (C)`,
      );
    }
    const statistics = { shape: [x.shape[0], 2], dtype: "f32" } as const;
    return residual ? [x, x, statistics] : [x, statistics];
  },
  kernels({ inputs, outputs, attrs }, device) {
    const [rows, columns] = inputs[0].shape;
    return [[{
      label: `${attrs.kind} norm${attrs.residual ? " of a sum" : ""}`,
      wgsl: forwardShader(attrs, columns, device),
      workgroups: grid(rows),
      bindings: [...inputs.map((x) => read(x)), ...outputs.map((y) => write(y))],
      uniforms: [rows],
    }]];
  },
  cost: ({ inputs: [x], attrs }) => ({ flops: 8 * count(x), bytes: (attrs.residual ? 16 : 8) * count(x) }),
  vjp: (call, grads, into) => normVjp(call, grads, into),
};

function normVjp(
  { inputs, outputs, attrs }: Call<Norm>,
  grads: readonly (Tensor | null)[],
  into: readonly (Tensor | null)[],
): (Tensor | null)[] {
  const { residual } = attrs;
  const x = residual ? outputs[0] : inputs[0];
  const [dsum, dy] = residual ? grads : [into[0], grads[0]];
  const statistics = outputs.at(-1)!;
  const parameters = inputs.slice(residual ? 2 : 1);
  if (dy === null) return [dsum, dsum, ...parameters.map(() => null)];
  const dx = apply(backwardOp, [dy, x, statistics, parameters[0], ...(dsum ? [dsum] : [])], attrs)[0];
  const partials = apply(partialsOp, [dy, x, statistics], attrs);
  const dparameters = partials.map((part, i) => columnSum(part, into[(residual ? 2 : 1) + i] ?? undefined));
  return residual ? [dx, dx, ...dparameters] : [dx, ...dparameters];
}

function backwardShader(kind: Norm["kind"], adds: boolean, columns: number, device: Capabilities): string {
  const reads = ["read> dy: array<T>", "read> x: array<T>", "read> statistics: array<vec2f>", "read> weight: array<T>"];
  const slope = kind === "layer" ? "g - along - normed * across" : "g - normed * across";
  return preamble(columns, device, declare([...reads, "read_write> dx: array<T>"])) + `
${MAIN}
  let mean = statistics[row].x;
  let rstd = statistics[row].y;
  var sum = T();
  var products = T();
  for (var i = lane; i < WIDTH; i += LANES) {
    let g = dy[base + i] * weight[i];
    sum += g;
    products += g * (x[base + i] - mean) * rstd;
  }
  let along = total(lane, sum) / COLUMNS;
  let across = total(lane, products) / COLUMNS;
  for (var i = lane; i < WIDTH; i += LANES) {
    let g = dy[base + i] * weight[i];
    let normed = (x[base + i] - mean) * rstd;
    dx[base + i] = ${adds ? "dx[base + i] + " : ""}rstd * (${slope});
  }
}`;
}

/** Gradient of what was normed: (dy, x, statistics, weight, [running sum]) → (N, C), in the running sum's memory. */
const backwardOp: Op<Norm> = {
  name: "norm_backward",
  infer: ([, x]) => [x],
  kernels({ inputs: [dy, x, statistics, weight, sum], outputs: [dx], attrs }, device) {
    const [rows, columns] = x.shape;
    return [[{
      label: `${attrs.kind} norm backward`,
      wgsl: backwardShader(attrs.kind, sum !== undefined, columns, device),
      workgroups: grid(rows),
      bindings: [read(dy), read(x), read(statistics), read(weight), write(dx)],
      uniforms: [rows],
    }]];
  },
  cost: ({ inputs: [dy] }) => ({ flops: 16 * count(dy), bytes: 16 * count(dy) }),
  inPlace: ({ inputs }): Record<number, number> => inputs.length === 5 ? { 0: 4 } : {},
};

const PARTIALS = `
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let column = group.x * WORKGROUP + lane;
  if (column >= WIDTH) { return; }
  var dweight = T();
  var dbias = T();
  for (var row = group.y * BLOCK; row < min(u.rows, (group.y + 1u) * BLOCK); row++) {
    let g = dy[row * WIDTH + column];
    dweight += g * (x[row * WIDTH + column] - statistics[row].x) * statistics[row].y;
    dbias += g;
  }
  dweights[group.y * WIDTH + column] = dweight;
  WRITE_BIAS
}`;

/** Gradients of the parameters, summed over blocks of rows: (dy, x, statistics) → (blocks, C) each. */
const partialsOp: Op<Norm> = {
  name: "norm_partials",
  infer([dy], { kind }) {
    const partial = { shape: [Math.ceil(dy.shape[0] / BLOCK), dy.shape[1]], dtype: "f32" } as const;
    return kind === "layer" ? [partial, partial] : [partial];
  },
  kernels({ inputs, outputs, attrs }, device) {
    const [rows, columns] = inputs[0].shape;
    const layer = attrs.kind === "layer";
    const reads = ["read> dy: array<T>", "read> x: array<T>", "read> statistics: array<vec2f>"];
    const writes = ["read_write> dweights: array<T>", ...(layer ? ["read_write> dbiases: array<T>"] : [])];
    const body = PARTIALS.replace("WRITE_BIAS", layer ? "dbiases[group.y * WIDTH + column] = dbias;" : "");
    const WORKGROUP = device.cpu ? 8 : 64;
    const width = columns % 4 === 0 ? columns / 4 : columns;
    return [[{
      label: `${attrs.kind} norm parameters`,
      wgsl: wgsl(preamble(columns, device, declare([...reads, ...writes])) + body, { WORKGROUP, BLOCK }),
      workgroups: [Math.ceil(width / WORKGROUP), outputs[0].shape[0], 1],
      bindings: [...inputs.map((x) => read(x)), ...outputs.map((y) => write(y))],
      uniforms: [rows],
    }]];
  },
  cost: ({ inputs: [dy] }) => ({ flops: 5 * count(dy), bytes: 8 * count(dy) }),
};

/** (x - mean) / √(variance + eps) · weight + bias, row by row. x (N, C); weight, bias (C). */
export function layerNorm(x: Tensor, weight: Tensor, bias: Tensor, eps: number): Tensor {
  return apply(normOp, [x, weight, bias], { kind: "layer", eps, residual: false })[0];
}

/** x / √(mean of x² + eps) · weight, row by row. x (N, C); weight (C). */
export function rmsNorm(x: Tensor, weight: Tensor, eps: number): Tensor {
  return apply(normOp, [x, weight], { kind: "rms", eps, residual: false })[0];
}

/** The sum of a branch and the residual stream, and its norm for the next reader: (N, C) each. */
export interface NormedSum {
  readonly sum: Tensor;
  readonly normed: Tensor;
}

/** x + residual and its layer norm in one kernel. */
export function residualLayerNorm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: number): NormedSum {
  const [sum, normed] = apply(normOp, [x, residual, weight, bias], { kind: "layer", eps, residual: true });
  return { sum, normed };
}

/** x + residual and its RMS norm in one kernel. */
export function residualRmsNorm(x: Tensor, residual: Tensor, weight: Tensor, eps: number): NormedSum {
  const [sum, normed] = apply(normOp, [x, residual, weight], { kind: "rms", eps, residual: true });
  return { sum, normed };
}
