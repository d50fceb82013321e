/**
 * WGSL of paged attention: a workgroup holds a few queries that share keys (rows of one sequence, or heads of one group),
 * its invocations go through the positions in turn, each with sums of its own, which are joined at the end. It knows no
 * tensor.
 */
import { iterationsOf } from "./attention_shared.ts";
import { f32, range } from "./gpu/wgsl.ts";
import { type HeadsPlace, vectorIndex } from "./heads.ts";

export interface PagedShape {
  readonly heads: number;
  readonly keyHeads: number;
  /** Elements of a head; a multiple of 4. */
  readonly width: number;
  readonly scale: number;
  /** Positions of a block. */
  readonly blockSize: number;
  readonly queries: HeadsPlace;
}

export interface PagedTile {
  /** Invocations of a workgroup. */
  readonly lanes: number;
  readonly rows: number;
  /** Query heads of one group. */
  readonly heads: number;
  /** Whether positions are split among workgroups: then sums are stored as parts, for paged_combine.wgsl. */
  readonly split: boolean;
}

/** vec4 columns that are joined at once. */
const JOINED = 8;

/** Loop iterations of an invocation for up to `length` positions, where each row is of another sequence. */
export function pagedIterations({ width }: PagedShape, { lanes, rows, heads }: PagedTile, length: number): number {
  const joins = rows * heads * Math.ceil(width / 4 / JOINED) * iterationsOf(1, iterationsOf(lanes));
  return iterationsOf(rows, iterationsOf(1) + iterationsOf(Math.ceil(length / lanes))) + 2 * iterationsOf(lanes) +
    joins;
}

/** Bindings: q, keys, values, block table, sequences, positions, then o, or parts and weights. Grid: head tiles, row tiles, splits. */
export function pagedShader(shape: PagedShape, tile: PagedTile): string {
  const vectors = range(shape.width / 4);
  const queries = range(tile.rows).flatMap((r) => range(tile.heads).map((h) => ({ r, h, i: r * tile.heads + h })));
  return `${declarations(shape, tile)}
@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let row_first = group.y * ROWS;
  let head_first = group.x * HELD_HEADS;
  let key_head = head_first / GROUP;
  let count = min(ROWS, u.rows - row_first);
  let split_first = group.z * u.split_length;
  let split_last = min(split_first + u.split_length, u.blocks * BLOCK) - 1u;
  ${
    range(tile.rows).map((r) =>
      `let row${r} = min(row_first + ${r}u, u.rows - 1u); let limit${r} = positions[row${r}];`
    ).join("\n  ")
  }
  ${
    queries.map(({ r, h, i }) =>
      `let query${i} = row${r} * HEADS + head_first + ${h}u;
  let source${i} = ${
        vectorIndex(shape.queries, `row${r}`, `(head_first + ${h}u) * VECTORS`)
      }; var m${i} = MASKED; var z${i} = 0.0;
  ${vectors.map((d) => `let q${i}_${d} = q[source${i} + ${d}u]; var o${i}_${d} = vec4f();`).join(" ")}`
    ).join("\n  ")
  }
  var begin = 0u;
  while (begin < count) {
    let sequence = sequences[row_first + begin];
    var end = begin;
    var last = 0u;
    while (end < count) {
      if (sequences[row_first + end] != sequence) { break; }
      last = max(last, positions[row_first + end]);
      end++;
    }
    for (var position = split_first + lane; position <= min(last, split_last); position += LANES) {
      let slot = block_table[sequence * u.blocks + position / BLOCK] * BLOCK + position % BLOCK;
      let at = (slot * KEY_HEADS + key_head) * VECTORS;
      ${queries.map(({ i }) => `var s${i} = vec4f();`).join(" ")}
      ${
    vectors.map((d) =>
      `let k${d} = keys[at + ${d}u]; ` + queries.map(({ i }) => `s${i} = fma(q${i}_${d}, k${d}, s${i});`).join(" ")
    ).join("\n      ")
  }
      ${queries.map(({ r, i }) => softmaxStep(r, i)).join("\n      ")}
      ${
    vectors.map((d) =>
      `let v${d} = values[at + ${d}u]; ` +
      queries.map(({ i }) => `o${i}_${d} = fma(vec4f(w${i}), v${d}, o${i}_${d} * shrink${i});`).join(" ")
    ).join("\n      ")
  }
    }
    begin = end;
  }
  ${queries.map(({ i }) => `tops[${i}u * LANES + lane] = m${i};`).join(" ")}
  workgroupBarrier();
  ${queries.map(({ i }) => `var top${i} = MASKED;`).join(" ")}
  for (var t = 0u; t < LANES; t++) { ${
    queries.map(({ i }) => `top${i} = max(top${i}, tops[${i}u * LANES + t]);`).join(" ")
  } }
  ${
    queries.map(({ i }) => `let share${i} = exp2(m${i} - top${i}); sums[${i}u * LANES + lane] = z${i} * share${i};`)
      .join(" ")
  }
  workgroupBarrier();
  ${queries.map(({ i }) => `var total${i} = 0.0;`).join(" ")}
  for (var t = 0u; t < LANES; t++) { ${queries.map(({ i }) => `total${i} += sums[${i}u * LANES + t];`).join(" ")} }
  ${queries.map(({ r, i }) => join(r, i, shape, tile)).join("\n  ")}
}`;
}

function declarations({ heads, keyHeads, width, scale, blockSize }: PagedShape, tile: PagedTile): string {
  const held = tile.rows * tile.heads;
  const outputs = tile.split ? ["parts: array<vec4f>", "weights: array<vec2f>"] : ["o: array<vec4f>"];
  return `struct Uniforms { rows: u32, blocks: u32, splits: u32, split_length: u32 }
@group(0) @binding(0) var<storage, read> q: array<vec4f>;
@group(0) @binding(1) var<storage, read> keys: array<vec4f>;
@group(0) @binding(2) var<storage, read> values: array<vec4f>;
@group(0) @binding(3) var<storage, read> block_table: array<u32>;
@group(0) @binding(4) var<storage, read> sequences: array<u32>;
@group(0) @binding(5) var<storage, read> positions: array<u32>;
${outputs.map((output, n) => `@group(0) @binding(${6 + n}) var<storage, read_write> ${output};`).join("\n")}
@group(0) @binding(${6 + outputs.length}) var<uniform> u: Uniforms;
const HEADS = ${heads}u;
const KEY_HEADS = ${keyHeads}u;
const GROUP = ${heads / keyHeads}u;
const VECTORS = ${width / 4}u;
const SCALE_LOG2 = ${f32(scale * Math.LOG2E)};
const BLOCK = ${blockSize}u;
const MASKED = -1e30;
const LANES = ${tile.lanes}u;
const ROWS = ${tile.rows}u;
const HELD_HEADS = ${tile.heads}u;
var<workgroup> tops: array<f32, ${held * tile.lanes}>;
var<workgroup> sums: array<f32, ${held * tile.lanes}>;
var<workgroup> joined: array<vec4f, ${tile.lanes * JOINED}>;`;
}

/** Rows of another sequence, and positions after a row's own, weigh nothing. */
function softmaxStep(r: number, i: number): string {
  return `let seen${i} = ${r}u >= begin && ${r}u < end && position <= limit${r};
      let x${i} = select(MASKED, (s${i}.x + s${i}.y + s${i}.z + s${i}.w) * SCALE_LOG2, seen${i});
      let next${i} = max(m${i}, x${i}); let shrink${i} = exp2(m${i} - next${i}); let w${i} = exp2(x${i} - next${i});
      m${i} = next${i}; z${i} = z${i} * shrink${i} + w${i};`;
}

/** Sums a query's columns over the lanes, JOINED vectors at a time: lane c sums column c. */
function join(r: number, i: number, { width }: PagedShape, { split }: PagedTile): string {
  const vectors = width / 4;
  const target = split
    ? `parts[(query${i} * u.splits + group.z) * VECTORS + column] = sum;`
    : `o[query${i} * VECTORS + column] = sum / total${i};`;
  const chunks = range(Math.ceil(vectors / JOINED)).map((chunk) => {
    const columns = range(Math.min(JOINED, vectors - chunk * JOINED));
    return `workgroupBarrier();
    ${columns.map((c) => `joined[lane * ${JOINED}u + ${c}u] = o${i}_${chunk * JOINED + c} * share${i};`).join(" ")}
    workgroupBarrier();
    for (var c = lane; c < ${columns.length}u; c += LANES) {
      var sum = vec4f();
      for (var t = 0u; t < LANES; t++) { sum += joined[t * ${JOINED}u + c]; }
      let column = ${chunk * JOINED}u + c;
      if (${r}u < count) { ${target} }
    }`;
  });
  const weight = split
    ? `if (lane == 0u && ${r}u < count) { weights[query${i} * u.splits + group.z] = vec2f(top${i}, total${i}); }`
    : "";
  return `{ ${weight}
    ${chunks.join("\n    ")} }`;
}
