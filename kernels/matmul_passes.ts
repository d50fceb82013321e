/** Small passes before and after a matrix product: operands padded for textures, partial sums added up. */
import activations from "./activations.wgsl" with { type: "text" };
import { type Capabilities, type Dispatch, type Scratch, scratch } from "./gpu/graph.ts";
import { read, rowSlice, write } from "./gpu/primitives.ts";
import { grid, GRID_WIDTH, wgsl } from "./gpu/wgsl.ts";
import { elementBytes, type Matrix, type Product, rowBytes, TEXTURE_ROW } from "./matmul_kernels.ts";

const WORKGROUP = 64;

/** Scratch that the products of one candidate share, as they run one after another. */
export class Workspace {
  readonly #taken = new Map<string, Scratch>();

  take(role: string, shape: readonly number[], dtype: Scratch["dtype"] = "f32"): Scratch {
    const key = JSON.stringify([role, shape, dtype]);
    const taken = this.#taken.get(key) ?? scratch(shape, dtype);
    this.#taken.set(key, taken);
    return taken;
  }
}

const PAD = `
struct Uniforms { words: u32, padded: u32, count: u32 }
@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4u>;
@group(0) @binding(2) var<uniform> u: Uniforms;
fn word(row: u32, column: u32) -> u32 {
  return select(0u, x[row * u.words + min(column, u.words - 1u)], column < u.words);
}
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let i = (group.x + group.y * GRID_WIDTH) * WORKGROUP + lane;
  if (i >= u.count) { return; }
  let row = i / (u.padded / 4u);
  let at = i % (u.padded / 4u) * 4u;
  y[i] = vec4u(word(row, at), word(row, at + 1u), word(row, at + 2u), word(row, at + 3u));
}`;

/** `rows` of an operand with zeroes behind each, as a texture takes them. */
export function padded(
  { tensor, row = 0 }: Matrix,
  rows: number,
  role: string,
  workspace: Workspace,
  { limits }: Capabilities,
): { matrix: Matrix; dispatches: Dispatch[] } {
  const words = rowBytes(tensor) / 4;
  const bytes = Math.ceil(rowBytes(tensor) / TEXTURE_ROW) * TEXTURE_ROW;
  const result = workspace.take(role, [rows, bytes / elementBytes(tensor)], tensor.dtype);
  // Slices of the padded rows are aligned anyhow.
  const alignment = limits.minStorageBufferOffsetAlignment;
  const step = rowSlice(rowBytes(tensor), limits.maxStorageBufferBindingSize * rowBytes(tensor) / bytes, alignment);
  const dispatches = Array.from({ length: Math.ceil(rows / step) }, (_, i): Dispatch => {
    const [from, to] = [i * step, Math.min(rows, (i + 1) * step)];
    const count = (to - from) * bytes / 16;
    return {
      label: "matmul pad",
      wgsl: wgsl(PAD, { WORKGROUP, GRID_WIDTH }),
      workgroups: grid(Math.ceil(count / WORKGROUP)),
      bindings: [read(tensor, [row + from, row + to]), write(result, [from, to])],
      uniforms: [words, bytes / 4, count],
    };
  });
  return { matrix: { tensor: result }, dispatches };
}

const FINISH = `
struct Uniforms { count: u32, columns: u32, parts: u32 }
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let i = (group.x + group.y * GRID_WIDTH) * WORKGROUP + lane;
  if (i >= u.count) { return; }
  var value = T();
  for (var part = 0u; part < u.parts; part++) { value += PARTIAL; }
  value += ADDED;
  c[i] = value;
  ACTIVATED
}`;

/** C from partial sums (parts · m, n), or from what C holds, with the product's epilogue. */
export function finish(product: Product, partial: Scratch | null, parts: number): Dispatch {
  const { c, m, n, bias, residual, activated, accumulate } = product;
  const lanes = n % 4 === 0 ? 4 : 1;
  const inputs = [
    ...(partial ? [["partial", partial] as const] : []),
    ...(bias ? [["bias", bias] as const] : []),
    ...(residual ? [["residual", residual] as const] : []),
  ];
  const outputs = activated ? ["c", "activated"] : ["c"];
  const declared = [
    ...inputs.map(([name]) => `var<storage, read> ${name}: array<T>;`),
    ...outputs.map((name) => `var<storage, read_write> ${name}: array<T>;`),
    "var<uniform> u: Uniforms;",
  ].map((declaration, i) => `@group(0) @binding(${i}) ${declaration}`);
  const added = [
    "T()",
    ...(bias ? ["bias[i % u.columns]"] : []),
    ...(residual ? ["residual[i]"] : []),
    ...(accumulate ? ["c[i]"] : []),
  ];
  const code = FINISH
    .replace("PARTIAL", partial ? "partial[part * u.count + i]" : "T()")
    .replace("ADDED", added.join(" + "))
    .replace("ACTIVATED", activated ? `activated[i] = ${activated.activation}(value);` : "");
  const row = c.row ?? 0;
  return {
    label: "matmul finish",
    wgsl: [
      `alias T = ${lanes === 4 ? "vec4f" : "f32"};`,
      ...declared,
      ...(activated ? [activations] : []),
      wgsl(code, { WORKGROUP, GRID_WIDTH }),
    ].join("\n"),
    workgroups: grid(Math.ceil(m * n / lanes / WORKGROUP)),
    bindings: [
      ...inputs.map(([, tensor]) => read(tensor)),
      write(c.tensor, [row, row + m]),
      ...(activated ? [write(activated.tensor)] : []),
    ],
    uniforms: [m * n / lanes, n / lanes, parts],
  };
}
