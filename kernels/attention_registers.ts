/**
 * Attention with neither subgroups nor workgroup memory: an invocation keeps a few rows of one head in registers, so that
 * each vector it loads serves them all. It knows no tensor.
 */
import {
  type AttentionShape,
  type AttentionVariant,
  declarations,
  iterationsOf,
  type Pass,
} from "./attention_shared.ts";
import { grid, GRID_WIDTH, range } from "./gpu/wgsl.ts";

const WORKGROUP = 32;

/** Kernels that hold `rows` rows forward and half as many backward. */
export function registerVariant(shape: AttentionShape, rows: number): AttentionVariant {
  const kernel = (pass: Pass, held: number, heads: number, body: string) => ({
    wgsl: open(shape, pass, held, heads, body),
    workgroups: (count: number) => grid(Math.ceil(Math.ceil(count / held) * heads / WORKGROUP)),
    iterations: (longest: number) => iterationsOf(longest + held),
  });
  const { heads, keyHeads } = shape;
  const half = Math.max(1, rows / 2);
  return {
    name: `${rows} rows in registers`,
    textures: false,
    forward: kernel("forward", rows, heads, forward(shape, rows)),
    queries: kernel("queries", half, heads, queries(shape, half)),
    keys: kernel("keys", half, keyHeads, keys(shape, half)),
  };
}

function open(shape: AttentionShape, pass: Pass, rows: number, heads: number, body: string): string {
  return `${declarations(shape, pass, false)}
fn sum(x: vec4f) -> f32 { return x.x + x.y + x.z + x.w; }
@compute @workgroup_size(${WORKGROUP})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let index = (group.x + group.y * ${GRID_WIDTH}u) * ${WORKGROUP}u + local;
  let first_row = index / ${heads}u * ${rows}u;
  if (first_row >= u.rows) { return; }
  let last = u.rows - 1u;
  ${range(rows).map((i) => `let row${i} = min(first_row + ${i}u, last);`).join(" ")}
${body}
}`;
}

function forward(shape: AttentionShape, rows: number): string {
  const columns = range(shape.width / 4);
  const step = (i: number) =>
    `{
      let x = select(MASKED, sum(s${i}) * SCALE_LOG2, key >= first${i} && key <= row${i});
      let m = max(m${i}, x);
      let shrink = exp2(m${i} - m);
      let w = exp2(x - m);
      m${i} = m;
      z${i} = z${i} * shrink + w;
      let used = w${shape.dropout ? ` * keep_factor(row${i}, key, head)` : ""};
      ${columns.map((d) => `o${i}_${d} = fma(vec4f(used), v${d}, o${i}_${d} * shrink);`).join(" ")}
    }`;
  return `${headOfQueries()}
  ${range(rows).map((i) => `let first${i} = starts[row${i}]; var m${i} = MASKED; var z${i} = 0.0;`).join("\n  ")}
  ${hold("q", "q0", shape, rows)}
  ${sums("o", shape, rows)}
  for (var key = first0; key <= row${rows - 1}; key++) {
    ${dots(shape, rows, "s", "q", "k", "k0", "key")}
    ${columns.map((d) => `let v${d} = v_at(k0 + ${d}u, key);`).join(" ")}
    ${range(rows).map(step).join("\n    ")}
  }
  ${store("o", "q0", shape, rows, (i) => `1.0 / z${i}`, (i) => ` lse[row${i} * HEADS + head] = m${i} + log2(z${i});`)}`;
}

function queries(shape: AttentionShape, rows: number): string {
  const columns = range(shape.width / 4);
  const step = (i: number) =>
    `{
      let x = select(MASKED, sum(s${i}) * SCALE_LOG2, key >= known${i}.z && key <= row${i});
      let slope = sum(p${i})${shape.dropout ? ` * keep_factor(row${i}, key, head)` : ""};
      let w = exp2(x - bitcast<f32>(known${i}.x)) * (slope - bitcast<f32>(known${i}.y));
      ${columns.map((d) => `o${i}_${d} = fma(vec4f(w), kv${d}, o${i}_${d});`).join(" ")}
    }`;
  return `${headOfQueries()}
  ${range(rows).map((i) => `let known${i} = statistics[row${i} * HEADS + head];`).join("\n  ")}
  ${hold("q", "q0", shape, rows)}
  ${hold("dy", "q0", shape, rows)}
  ${sums("o", shape, rows)}
  for (var key = known0.z; key <= row${rows - 1}; key++) {
    ${dots(shape, rows, "s", "q", "k", "k0", "key")}
    ${dots(shape, rows, "p", "dy", "v", "k0", "key")}
    ${range(rows).map(step).join("\n    ")}
  }
  ${store("dq", "q0", shape, rows, () => "SCALE")}`;
}

/** Here the rows held are keys. */
function keys(shape: AttentionShape, rows: number): string {
  const columns = range(shape.width / 4);
  const step = (i: number) =>
    `{
        let seen = query < u.rows && query >= first_row + ${i}u && known.z <= first_row + ${i}u;
        let w = exp2(select(MASKED, sum(s${i}) * SCALE_LOG2, seen) - bitcast<f32>(known.x));
        ${shape.dropout ? `let kept = keep_factor(query, first_row + ${i}u, head);` : ""}
        let c = w * (sum(p${i})${shape.dropout ? " * kept" : ""} - bitcast<f32>(known.y));
        let used = w${shape.dropout ? " * kept" : ""};
        ${
      columns.map((d) =>
        `o${i}_${d} = fma(vec4f(used), pv${d}, o${i}_${d}); e${i}_${d} = fma(vec4f(c), kv${d}, e${i}_${d});`
      ).join(" ")
    }
      }`;
  return `  let key_head = index % KEY_HEADS;
  let k0 = key_head * VECTORS;
  ${hold("k", "k0", shape, rows)}
  ${hold("v", "k0", shape, rows)}
  ${sums("o", shape, rows)}
  ${sums("e", shape, rows)}
  for (var head = key_head * GROUP + FIRST_HEAD; head < key_head * GROUP + END_HEAD; head++) {
    let q0 = head * VECTORS;
    for (var query = first_row; query < u.rows; query++) {
      let known = statistics[query * HEADS + head];
      if (known.z > row${rows - 1}) { break; }
      ${dots(shape, rows, "s", "k", "q", "q0", "query")}
      ${dots(shape, rows, "p", "v", "dy", "q0", "query", "pv")}
      ${range(rows).map(step).join("\n      ")}
    }
  }
  ${store("dv", "k0", shape, rows, () => "1.0")}
  ${store("dk", "k0", shape, rows, () => "SCALE", () => "", "e")}`;
}

function headOfQueries(): string {
  return `  let head = index % HEADS;
  let q0 = head * VECTORS;
  let k0 = head / GROUP * VECTORS;`;
}

function hold(name: string, vector: string, { width }: AttentionShape, rows: number): string {
  return range(rows).map((i) =>
    range(width / 4).map((d) => `let ${name}${i}_${d} = ${name}_at(${vector} + ${d}u, row${i});`).join(" ")
  ).join("\n  ");
}

function sums(name: string, { width }: AttentionShape, rows: number): string {
  return range(rows).map((i) => range(width / 4).map((d) => `var ${name}${i}_${d} = vec4f();`).join(" ")).join("\n  ");
}

/** `out`i: parts of the product of held row i with the operand's row, whose vectors stay as `loaded`d. */
function dots(
  { width }: AttentionShape,
  rows: number,
  out: string,
  held: string,
  operand: string,
  vector: string,
  row: string,
  loaded = out === "s" ? "kv" : "pv",
): string {
  const lines = range(width / 4).map((d) =>
    `let ${loaded}${d} = ${operand}_at(${vector} + ${d}u, ${row}); ` +
    range(rows).map((i) => `${out}${i} = fma(${held}${i}_${d}, ${loaded}${d}, ${out}${i});`).join(" ")
  );
  return [range(rows).map((i) => `var ${out}${i} = vec4f();`).join(" "), ...lines].join("\n    ");
}

function store(
  out: string,
  vector: string,
  { width }: AttentionShape,
  rows: number,
  factor: (i: number) => string,
  more: (i: number) => string = () => "",
  from = "o",
): string {
  return range(rows).map((i) =>
    `if (first_row + ${i}u < u.rows) { let factor = ${factor(i)};${more(i)} ${
      range(width / 4).map((d) => `set_${out}(${vector} + ${d}u, row${i}, ${from}${i}_${d} * factor);`).join(" ")
    } }`
  ).join("\n  ");
}
