/** Kernels that compute each element from the elements at the same place: one shader frame. It knows no particular function. */
import { type Capabilities, count, type Dispatch, type Tensor } from "./gpu/graph.ts";
import { read, slices, write } from "./gpu/primitives.ts";
import { grid, GRID_WIDTH, wgsl } from "./gpu/wgsl.ts";

const WORKGROUP = 64;

export interface Elementwise {
  readonly label: string;
  /** Read at the element's place, called a, b, c, d in the body. */
  readonly inputs: readonly Tensor[];
  /** Read whole, by name. */
  readonly whole?: Readonly<Record<string, { readonly tensor: Tensor; readonly type: string }>>;
  readonly output: Tensor;
  /** Where the output lies in the memory of the first input, which is then not bound again. */
  readonly inPlace?: boolean;
  /** WGSL functions; T is vec4f or f32. */
  readonly functions?: string;
  /** An expression of type T over a, b, c, d and the element's index `i` (in units of T). */
  readonly body: string;
}

/** One candidate: vectors of four where the count allows it, sliced by rows where a tensor passes the binding limit. */
export function elementwise(kernel: Elementwise, device: Capabilities): readonly (readonly Dispatch[])[] {
  const { label, inputs, whole = {}, output, inPlace = false, functions = "", body } = kernel;
  const lanes = count(output) % 4 === 0 && rowElements(output) % 4 === 0 ? 4 : 1;
  const names = ["a", "b", "c", "d"].slice(0, inputs.length);
  const bound = names.map((name, i) => ({ name, tensor: inputs[i] })).slice(inPlace ? 1 : 0);
  const declarations = [
    ...bound.map(({ name }) => `var<storage, read> ${name}_data: array<T>;`),
    ...Object.entries(whole).map(([name, { type }]) => `var<storage, read> ${name}: ${type};`),
    "var<storage, read_write> output: array<T>;",
    "var<uniform> u: Uniforms;",
  ].map((line, binding) => `@group(0) @binding(${binding}) ${line}`);
  const loads = names.map((name, i) => `let ${name} = ${inPlace && i === 0 ? "output" : `${name}_data`}[at];`);
  const text = `alias T = ${lanes === 4 ? "vec4f" : "f32"};
struct Uniforms { count: u32, first: u32 }
${declarations.join("\n")}
${functions}
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let at = (group.x + group.y * GRID_WIDTH) * WORKGROUP + lane;
  if (at >= u.count) { return; }
  let i = u.first + at;
  ${loads.join("\n  ")}
  output[at] = ${body};
}`;
  const code = wgsl(text, { WORKGROUP, GRID_WIDTH, LANES: lanes });
  return [
    slices(output, device).map(({ rows, elements: all }) => {
      const elements = all / lanes;
      return {
        label,
        wgsl: code,
        workgroups: grid(Math.ceil(elements / WORKGROUP)),
        bindings: [
          ...bound.map(({ tensor }) => read(tensor, rowsOf(tensor, output, rows))),
          ...Object.values(whole).map(({ tensor }) => read(tensor)),
          write(output, rows),
        ],
        uniforms: [elements, rows[0] * rowElements(output) / lanes],
      };
    }),
  ];
}

function rowElements(tensor: Tensor): number {
  return count(tensor) / tensor.shape[0];
}

/** The same elements as rows of another shape. */
function rowsOf(tensor: Tensor, like: Tensor, rows: readonly [number, number]): readonly [number, number] {
  const factor = rowElements(like) / rowElements(tensor);
  return [rows[0] * factor, rows[1] * factor];
}
