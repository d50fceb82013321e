/**
 * Rows of a table by index, and the gradient: a scatter-add in a fixed order, without atomics. It knows no tokens: the
 * same op takes rows of any tensor. A table past the binding limit is bound by slices of rows.
 */
import { exampleIds } from "./examples.ts";
import {
  apply,
  type Capabilities,
  count,
  type Dispatch,
  formatType,
  type Op,
  scratch,
  type Tensor,
} from "./gpu/graph.ts";
import { isFloat } from "./cast.ts";
import { read, slices, write } from "./gpu/primitives.ts";
import { grid, GRID_WIDTH, wgsl } from "./gpu/wgsl.ts";

const WORKGROUP = 64;

const GATHER = `
@group(0) @binding(0) var<storage, read> table: array<STORED>;
@group(0) @binding(1) var<storage, read> ids: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<T>;
@group(0) @binding(3) var<uniform> u: Uniforms;
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let i = (group.x + group.y * GRID_WIDTH) * WORKGROUP + lane;
  let row = i / WIDTH;
  if (row >= u.rows) { return; }
  let id = ids[row];
  if (id >= u.first && id < u.end) { y[i] = taken(id - u.first, i % WIDTH); }
  // An index outside of the table takes zeroes, and a slice leaves the others' rows alone.
  if (id >= TABLE_ROWS && u.first == 0u) { y[i] = T(); }
}`;

// For each row the next one of the same id; FIRST is set where there is none before it. Four ids a load: rows × rows are
// compared.
const LINK = `
@group(0) @binding(0) var<storage, read> ids: array<vec4u>;
@group(0) @binding(1) var<storage, read_write> links: array<vec2u>;
@group(0) @binding(2) var<uniform> u: Uniforms;
fn others(block: u32) -> vec4u { return vec4u(block * 4u) + vec4u(0u, 1u, 2u, 3u); }
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let row = (group.x + group.y * GRID_WIDTH) * WORKGROUP + lane;
  if (row >= u.rows) { return; }
  let id = vec4u(ids[row / 4u][row % 4u]);
  var next = NONE;
  for (var block = row / 4u; block * 4u < u.rows; block++) {
    let same = (ids[block] == id) & (others(block) > vec4u(row)) & (others(block) < vec4u(u.rows));
    if (any(same)) {
      let found = select(vec4u(NONE), others(block), same);
      next = min(min(found.x, found.y), min(found.z, found.w));
      break;
    }
  }
  var first = 1u;
  for (var block = row / 4u + 1u; block > 0u; block--) {
    if (any((ids[block - 1u] == id) & (others(block - 1u) < vec4u(row)))) {
      first = 0u;
      break;
    }
  }
  links[row] = vec2u(next, first);
}`;

const SCATTER = `
@group(0) @binding(0) var<storage, read> ids: array<u32>;
@group(0) @binding(1) var<storage, read> links: array<vec2u>;
@group(0) @binding(2) var<storage, read> dy: array<T>;
@group(0) @binding(3) var<storage, read_write> dtable: array<T>;
@group(0) @binding(4) var<uniform> u: Uniforms;
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let i = (group.x + group.y * GRID_WIDTH) * WORKGROUP + lane;
  let row = i / WIDTH;
  let column = i % WIDTH;
  if (row >= u.rows || links[row].y == 0u || ids[row] < u.first || ids[row] >= u.end) { return; }
  let at = (ids[row] - u.first) * WIDTH + column;
  var sum = dtable[at];
  for (var next = row; next != NONE; next = links[next].x) { sum += dy[next * WIDTH + column]; }
  dtable[at] = sum;
}`;

const CLEAR = `
@group(0) @binding(0) var<storage, read_write> dtable: array<T>;
@group(0) @binding(1) var<uniform> u: Uniforms;
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let i = (group.x + group.y * GRID_WIDTH) * WORKGROUP + lane;
  if (i < (u.end - u.first) * WIDTH) { dtable[i] = T(); }
}`;

/** `taken(row, column)`: the T at a place of the table, whatever it is stored in. */
function taking({ dtype, shape: [, columns] }: Tensor): string {
  if (dtype === "f32") return "alias STORED = T;\nfn taken(row: u32, at: u32) -> T { return table[row * WIDTH + at]; }";
  const pair = dtype === "f16" ? "unpack2x16float(word)" : "bitcast<vec2f>(vec2u(word << 16u, word & 0xffff0000u))";
  const unpack = `fn pair(word: u32) -> vec2f { return ${pair}; }`;
  if (columns % 4 === 0) {
    return `alias STORED = vec2u;\n${unpack}
fn taken(row: u32, at: u32) -> T {
  let words = table[row * WIDTH + at];
  return T(pair(words.x), pair(words.y));
}`;
  }
  return `alias STORED = u32;\n${unpack}
fn taken(row: u32, at: u32) -> T { return pair(table[row * ${Math.ceil(columns / 2)}u + at / 2u])[at % 2u]; }`;
}

function shader(
  text: string,
  columns: number,
  tableRows: number,
  functions = "",
): { readonly code: string; readonly width: number } {
  const vector = columns % 4 === 0 ? 4 : 1;
  const width = columns / vector;
  const head = `alias T = ${vector === 4 ? "vec4f" : "f32"};
struct Uniforms { rows: u32, first: u32, end: u32 }
const NONE = 0xffffffffu;`;
  return {
    code: `${head}\n${wgsl(functions + text, { WORKGROUP, GRID_WIDTH, WIDTH: width, TABLE_ROWS: tableRows })}`,
    width,
  };
}

const groups = (invocations: number) => grid(Math.ceil(invocations / WORKGROUP));

const embeddingOp: Op<undefined> = {
  name: "embedding",
  infer([table, ids]) {
    if (table.shape.length !== 2 || !isFloat(table.dtype) || ids.shape.length !== 1 || ids.dtype !== "u32") {
      throw new RangeError(
        `Cannot take rows ${formatType(ids)} of ${formatType(table)}: want (N) u32 of (V, C) f32, bf16 or f16`,
      );
    }
    return [{ shape: [ids.shape[0], table.shape[1]], dtype: "f32" }];
  },
  kernels({ inputs: [table, ids], outputs: [y] }, device) {
    const { code, width } = shader(GATHER, table.shape[1], table.shape[0], taking(table));
    return [
      slices(table, device).map(({ rows }) => ({
        label: "embedding",
        wgsl: code,
        workgroups: groups(ids.shape[0] * width),
        bindings: [read(table, rows), read(ids), write(y)],
        uniforms: [ids.shape[0], ...rows],
      })),
    ];
  },
  cost: ({ outputs: [y] }) => ({ flops: 0, bytes: 8 * count(y) }),
  examples: ({ inputs: [table, ids] }) => ({ 1: exampleIds(ids.shape[0], table.shape[0]) }),
  vjp: ({ inputs: [table, ids] }, [grad], [into]) => {
    const attrs = { shape: table.shape, accumulate: into !== null };
    return [apply(backwardOp, [ids, grad!, ...(into === null ? [] : [into])], attrs)[0], null];
  },
};

/** (ids, dy, [running sum]) → the table's gradient (V, C), in the running sum's memory. */
const backwardOp: Op<{ readonly shape: readonly number[]; readonly accumulate: boolean }> = {
  name: "embedding_backward",
  infer: (_, { shape }) => [{ shape, dtype: "f32" }],
  kernels({ inputs: [ids, dy], outputs: [dtable], attrs: { accumulate } }, device) {
    const [rows] = ids.shape;
    // All rows may be of one id, and one invocation then adds them up.
    if (rows + WORKGROUP > device.loopIterations) {
      throw new RangeError(
        `Cannot add ${rows} rows into a table: this adapter's loops end after ${device.loopIterations} iterations; ` +
          "use smaller microbatches",
      );
    }
    return [[...(accumulate ? [] : clear(dtable, device)), ...scatter(ids, dy, dtable, device)]];
  },
  cost: ({ inputs: [ids, dy] }) => ({ flops: count(dy) + ids.shape[0] ** 2, bytes: 12 * count(dy) }),
  inPlace: ({ attrs }): Record<number, number> => attrs.accumulate ? { 0: 2 } : {},
  examples: ({ inputs: [ids], attrs }) => ({ 0: exampleIds(ids.shape[0], attrs.shape[0]) }),
};

function clear(dtable: Tensor, device: Capabilities): Dispatch[] {
  const { code, width } = shader(CLEAR, dtable.shape[1], dtable.shape[0]);
  return slices(dtable, device).map(({ rows }) => ({
    label: "embedding clear",
    wgsl: code,
    workgroups: groups((rows[1] - rows[0]) * width),
    bindings: [write(dtable, rows)],
    uniforms: [0, ...rows],
  }));
}

function scatter(ids: Tensor, dy: Tensor, dtable: Tensor, device: Capabilities): Dispatch[] {
  const rows = ids.shape[0];
  const links = scratch([rows, 2], "u32");
  const { code, width } = shader(SCATTER, dtable.shape[1], dtable.shape[0]);
  const link: Dispatch = {
    label: "embedding links",
    wgsl: shader(LINK, dtable.shape[1], dtable.shape[0]).code,
    workgroups: groups(rows),
    bindings: [read(ids), write(links)],
    uniforms: [rows, 0, 0],
  };
  return [
    link,
    ...slices(dtable, device).map(({ rows: slice }) => ({
      label: "embedding scatter",
      wgsl: code,
      workgroups: groups(rows * width),
      bindings: [read(ids), read(links), read(dy), write(dtable, slice)],
      uniforms: [rows, ...slice],
    })),
  ];
}

/**
 * Row ids[n] of a table for each n.
 *
 * @param table (V, C) f32, bf16 or f16, of any size; its gradient is f32.
 * @param ids (N) u32; an id ≥ V takes zeroes.
 * @returns (N, C).
 */
export function embedding(table: Tensor, ids: Tensor): Tensor {
  return apply(embeddingOp, [table, ids], undefined)[0];
}
