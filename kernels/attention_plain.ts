/**
 * Attention as plainly as WGSL can say it: one invocation a row and head, loops over the row's range. It is right on
 * every adapter, needs nothing of it, and is what the other manners are compared with. It knows no tensor.
 */
import {
  type AttentionShape,
  type AttentionVariant,
  declarations,
  iterationsOf,
  type Pass,
} from "./attention_shared.ts";
import { grid, GRID_WIDTH } from "./gpu/wgsl.ts";

const WORKGROUP = 32;

/** Scalar kernels. */
export function plainVariant(shape: AttentionShape): AttentionVariant {
  const vectors = shape.width / 4;
  const kernel = (pass: Pass, heads: number, body: string) => ({
    wgsl: open(shape, pass, heads, body),
    workgroups: (rows: number) => grid(Math.ceil(rows * heads / WORKGROUP)),
    iterations: (longest: number) => iterationsOf(longest + 1, 2 * iterationsOf(vectors)) + iterationsOf(vectors),
  });
  const kept = (row: string, key: string) => shape.dropout ? ` * keep_factor(${row}, ${key}, head)` : "";
  return {
    name: "plain",
    textures: false,
    forward: kernel("forward", shape.heads, forward(kept("row", "key"))),
    queries: kernel("queries", shape.heads, queries(kept("row", "key"))),
    keys: kernel("keys", shape.keyHeads, keys(kept("query", "row"))),
  };
}

function open(shape: AttentionShape, pass: Pass, heads: number, body: string): string {
  return `${declarations(shape, pass, false)}
alias Head = array<vec4f, ${shape.width / 4}>;
fn sum(x: vec4f) -> f32 { return x.x + x.y + x.z + x.w; }
@compute @workgroup_size(${WORKGROUP})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let index = (group.x + group.y * ${GRID_WIDTH}u) * ${WORKGROUP}u + local;
  let row = index / ${heads}u;
  if (row >= u.rows) { return; }
${body}
}`;
}

/** One pass: the running maximum moves, and what was summed before shrinks with it. */
function forward(kept: string): string {
  return `  let head = index % HEADS;
  let q0 = head * VECTORS;
  let k0 = head / GROUP * VECTORS;
  var total: Head;
  var top = MASKED;
  var z = 0.0;
  for (var key = starts[row]; key <= row; key++) {
    var dot = vec4f();
    for (var d = 0u; d < VECTORS; d++) { dot += q_at(q0 + d, row) * k_at(k0 + d, key); }
    let score = sum(dot) * SCALE_LOG2;
    let shrink = exp2(top - max(top, score));
    top = max(top, score);
    let weight = exp2(score - top);
    z = z * shrink + weight;
    let used = weight${kept};
    for (var d = 0u; d < VECTORS; d++) { total[d] = total[d] * shrink + used * v_at(k0 + d, key); }
  }
  for (var d = 0u; d < VECTORS; d++) { set_o(q0 + d, row, total[d] / z); }
  lse[index] = top + log2(z);`;
}

function queries(kept: string): string {
  return `  let head = index % HEADS;
  let q0 = head * VECTORS;
  let k0 = head / GROUP * VECTORS;
  let known = statistics[index];
  var total: Head;
  for (var key = known.z; key <= row; key++) {
    var score = vec4f();
    var slope = vec4f();
    for (var d = 0u; d < VECTORS; d++) {
      score += q_at(q0 + d, row) * k_at(k0 + d, key);
      slope += dy_at(q0 + d, row) * v_at(k0 + d, key);
    }
    let weight = exp2(sum(score) * SCALE_LOG2 - bitcast<f32>(known.x));
    let change = weight * (sum(slope)${kept} - bitcast<f32>(known.y)) * SCALE;
    for (var d = 0u; d < VECTORS; d++) { total[d] += change * k_at(k0 + d, key); }
  }
  for (var d = 0u; d < VECTORS; d++) { set_dq(q0 + d, row, total[d]); }`;
}

/** Here the row is a key; the queries that see it end where a document starts after it. */
function keys(kept: string): string {
  return `  let key_head = index % KEY_HEADS;
  let k0 = key_head * VECTORS;
  var k_total: Head;
  var v_total: Head;
  for (var head = key_head * GROUP + FIRST_HEAD; head < key_head * GROUP + END_HEAD; head++) {
    let q0 = head * VECTORS;
    for (var query = row; query < u.rows; query++) {
      let known = statistics[query * HEADS + head];
      if (known.z > row) { break; }
      var score = vec4f();
      var slope = vec4f();
      for (var d = 0u; d < VECTORS; d++) {
        score += q_at(q0 + d, query) * k_at(k0 + d, row);
        slope += dy_at(q0 + d, query) * v_at(k0 + d, row);
      }
      let weight = exp2(sum(score) * SCALE_LOG2 - bitcast<f32>(known.x));
      let change = weight * (sum(slope)${kept} - bitcast<f32>(known.y)) * SCALE;
      let used = weight${kept};
      for (var d = 0u; d < VECTORS; d++) {
        k_total[d] += change * q_at(q0 + d, query);
        v_total[d] += used * dy_at(q0 + d, query);
      }
    }
  }
  for (var d = 0u; d < VECTORS; d++) {
    set_dk(k0 + d, row, k_total[d]);
    set_dv(k0 + d, row, v_total[d]);
  }`;
}
