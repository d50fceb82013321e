/**
 * Attention in tiles of workgroup memory, for GPUs: 64 invocations stand as 8 by 8 over a tile of 32 rows and some keys,
 * each makes four rows' scores for its keys, then four rows' sums for its columns of the head. It knows no tensor.
 */
import {
  type AttentionShape,
  type AttentionVariant,
  declarations,
  iterationsOf,
  type Pass,
} from "./attention_shared.ts";
import { range } from "./gpu/wgsl.ts";

const SIDE = 8;
const ROWS = 32;
const EACH = ROWS / SIDE;
const PARTS = "xyzw";

/** Kernels within `bytes` of workgroup memory, or null where even the smallest tiles don't fit. */
export function tileVariant(shape: AttentionShape, bytes: number): AttentionVariant | null {
  const keys = [32, 16, 8].find((keys) => memory(shape, keys) <= bytes);
  if (keys === undefined) return null;
  const text = new TileText(shape, keys);
  const vectors = shape.width / 4;
  const kernel = (wgsl: string, heads: number, products: number, more: number) => ({
    wgsl,
    workgroups: (rows: number) => [heads, Math.ceil(rows / ROWS), 1] as const,
    iterations: (longest: number) => {
      const filling = iterationsOf(Math.ceil(keys * vectors / (SIDE * SIDE)));
      const inner = filling + products * iterationsOf(vectors) + iterationsOf(keys) + more;
      return iterationsOf(Math.ceil((longest + ROWS) / keys), inner) + more;
    },
  });
  return {
    name: `${ROWS}x${keys} tiles`,
    textures: false,
    forward: kernel(text.forward(), shape.heads, 1, EACH * iterationsOf(SIDE)),
    queries: kernel(text.queries(), shape.heads, 2, 0),
    keys: kernel(text.keys(), shape.keyHeads, 2, 0),
  };
}

/** Bytes of the pass that needs most: two operand tiles and two of weights. */
function memory({ width }: AttentionShape, keys: number): number {
  return 2 * keys * (width / 4 + 1) * 16 + 2 * keys * ROWS * 4;
}

class TileText {
  /** Keys an invocation makes scores for, and vectors of the head it sums. */
  readonly mine: number;
  readonly vectors: number;

  constructor(readonly shape: AttentionShape, readonly keyCount: number) {
    this.mine = keyCount / SIDE;
    this.vectors = Math.ceil(shape.width / 4 / SIDE);
  }

  forward(): string {
    const softmax = range(EACH).map((i) => {
      const scores = range(this.mine).map((j) => `s${i}_${j}`);
      return `{ var top = m${i}; for (var t = 0u; t < SIDE; t++) { top = max(top, tops[(ty * EACH + ${i}u) * SIDE + t]); }
      let shrink = exp2(m${i} - top); m${i} = top;
      ${scores.map((s) => `${s} = exp2(${s} - top);`).join(" ")}
      z${i} = z${i} * shrink + ${scores.join(" + ")};
      ${range(this.vectors).map((c) => `o${i}_${c} *= shrink;`).join(" ")}
      ${this.#drop(i, (j) => `s${i}_${j} *= `)} }`;
    });
    return `${this.#open("forward", ["a", "b"], ["weights"])}
  ${this.#queryTile()}
  ${this.#eachRow((i) => `let first${i} = starts[row${i}]; var m${i} = MASKED; var z${i} = 0.0;`)}
  ${this.#sums("o")}
  for (var key_first = starts[row_first]; key_first < row_end; key_first += KEYS) {
    ${this.#fill("key_first", ["k", "k0"], ["v", "k0"])}
    ${this.#scores("s", "q", "q0", "a")}
    ${this.#eachPair((i, j) => `s${i}_${j} = ${this.#masked(i, j)};`)}
    ${
      this.#eachRow((i) =>
        `tops[(ty * EACH + ${i}u) * SIDE + tx] = ${this.#maximum(range(this.mine).map((j) => `s${i}_${j}`))};`
      )
    }
    workgroupBarrier();
    ${softmax.join("\n    ")}
    ${this.#share("weights", "s")}
    workgroupBarrier();
    ${this.#product([["o", "weights", "b"]])}
  }
  workgroupBarrier();
  ${this.#eachRow((i) => `tops[(ty * EACH + ${i}u) * SIDE + tx] = z${i};`)}
  workgroupBarrier();
  ${
      this.#eachRow((i) =>
        `var total${i} = 0.0; for (var t = 0u; t < SIDE; t++) { total${i} += tops[(ty * EACH + ${i}u) * SIDE + t]; }
  if (tx == 0u && row_first + ty * EACH + ${i}u < u.rows) { lse[row${i} * HEADS + head] = m${i} + log2(total${i}); }`
      )
    }
  ${this.#store("o", "q0", (i) => `1.0 / total${i}`)}
}`;
  }

  queries(): string {
    return `${this.#open("queries", ["a", "b"], ["weights"])}
  ${this.#queryTile()}
  ${
      this.#eachRow((i) =>
        `let known${i} = statistics[row${i} * HEADS + head]; let first${i} = known${i}.z;
  let lse${i} = bitcast<f32>(known${i}.x); let delta${i} = bitcast<f32>(known${i}.y);`
      )
    }
  ${this.#sums("o")}
  for (var key_first = statistics[row_first * HEADS + head].z; key_first < row_end; key_first += KEYS) {
    ${this.#fill("key_first", ["k", "k0"], ["v", "k0"])}
    ${this.#scores("s", "q", "q0", "a")}
    ${this.#scores("p", "dy", "q0", "b")}
    ${this.#eachRow((i) => this.#drop(i, (j) => `p${i}_${j} *= `))}
    ${this.#eachPair((i, j) => `s${i}_${j} = exp2(${this.#masked(i, j)} - lse${i}) * (p${i}_${j} - delta${i});`)}
    ${this.#share("weights", "s")}
    workgroupBarrier();
    ${this.#product([["o", "weights", "a"]])}
  }
  ${this.#store("dq", "q0", () => "SCALE", "o")}
}`;
  }

  /** Here a tile's rows are keys, and what stands for keys elsewhere are queries. */
  keys(): string {
    const known = range(this.mine).map((j) =>
      `let query${j} = query_first + tx + ${j * SIDE}u; let known${j} = statistics[min(query${j}, last) * HEADS + head];
      let lse${j} = bitcast<f32>(known${j}.x); let delta${j} = bitcast<f32>(known${j}.y);`
    );
    const { dropout } = this.shape;
    const weigh = (i: number, j: number) => {
      const key = `(row_first + ty * EACH + ${i}u)`;
      return `{ let seen = query${j} < u.rows && query${j} >= ${key} && known${j}.z <= ${key};
      let w = exp2(select(MASKED, s${i}_${j} * SCALE_LOG2, seen) - lse${j});
      ${dropout ? `let kept = keep_factor(query${j}, ${key}, head);` : ""}
      p${i}_${j} = w * (p${i}_${j}${dropout ? " * kept" : ""} - delta${j}); s${i}_${j} = w${
        dropout ? " * kept" : ""
      }; }`;
    };
    return `${this.#open("keys", ["a", "b"], ["weights", "slopes"])}
  let row_first = group.y * ROWS;
  let row_end = min(row_first + ROWS, u.rows);
  let key_head = group.x;
  let k0 = key_head * VECTORS;
  ${this.#rowIndices()}
  ${this.#sums("o")}
  ${this.#sums("e")}
  for (var head = key_head * GROUP + FIRST_HEAD; head < key_head * GROUP + END_HEAD; head++) {
    let q0 = head * VECTORS;
    for (var query_first = row_first; query_first < u.rows; query_first += KEYS) {
      if (statistics[query_first * HEADS + head].z >= row_end) { break; }
      ${this.#fill("query_first", ["q", "q0"], ["dy", "q0"])}
      ${known.join("\n      ")}
      ${this.#scores("s", "k", "k0", "a")}
      ${this.#scores("p", "v", "k0", "b")}
      ${this.#eachPair(weigh)}
      ${this.#share("weights", "s")}
      ${this.#share("slopes", "p")}
      workgroupBarrier();
      ${this.#product([["o", "weights", "b"], ["e", "slopes", "a"]])}
    }
  }
  ${this.#store("dv", "k0", () => "1.0", "o")}
  ${this.#store("dk", "k0", () => "SCALE", "e")}
}`;
  }

  #open(pass: Pass, tiles: readonly string[], weights: readonly string[]): string {
    const size = this.keyCount * (this.shape.width / 4 + 1);
    return `${declarations(this.shape, pass, false)}
const SIDE = ${SIDE}u;
const EACH = ${EACH}u;
const ROWS = ${ROWS}u;
const KEYS = ${this.keyCount}u;
const STRIDE = VECTORS + 1u;
${tiles.map((name) => `var<workgroup> ${name}: array<vec4f, ${size}>;`).join("\n")}
${weights.map((name) => `var<workgroup> ${name}: array<vec4f, ${this.keyCount * ROWS / 4}>;`).join("\n")}
${pass === "forward" ? `var<workgroup> tops: array<f32, ${ROWS * SIDE}>;` : ""}
@compute @workgroup_size(${SIDE}, ${SIDE})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_id) id: vec3u, @builtin(local_invocation_index) local: u32) {
  let tx = id.x;
  let ty = id.y;
  let last = u.rows - 1u;`;
  }

  /** Rows of queries, the heaviest tiles first. */
  #queryTile(): string {
    return `let row_first = (groups.y - 1u - group.y) * ROWS;
  let row_end = min(row_first + ROWS, u.rows);
  let head = group.x;
  let q0 = head * VECTORS;
  let k0 = head / GROUP * VECTORS;
  ${this.#rowIndices()}`;
  }

  #rowIndices(): string {
    return this.#eachRow((i) => `let row${i} = min(row_first + ty * EACH + ${i}u, last);`);
  }

  #eachRow(line: (i: number) => string): string {
    return range(EACH).map(line).join("\n  ");
  }

  #eachPair(line: (i: number, j: number) => string): string {
    return range(EACH).flatMap((i) => range(this.mine).map((j) => line(i, j))).join("\n    ");
  }

  #sums(name: string): string {
    return this.#eachRow((i) => range(this.vectors).map((c) => `var ${name}${i}_${c} = vec4f();`).join(" "));
  }

  /** Loads both tiles, after all are done with the ones before. */
  #fill(base: string, [a, aVector]: readonly string[], [b, bVector]: readonly string[]): string {
    return `workgroupBarrier();
    for (var t = local; t < KEYS * VECTORS; t += SIDE * SIDE) {
      let at = t / VECTORS * STRIDE + t % VECTORS;
      let source = min(${base} + t / VECTORS, last);
      a[at] = ${a}_at(${aVector} + t % VECTORS, source);
      b[at] = ${b}_at(${bVector} + t % VECTORS, source);
    }
    workgroupBarrier();`;
  }

  #scores(out: string, operand: string, vector: string, tile: string): string {
    return `${this.#eachPair((i, j) => `var ${out}${i}_${j} = 0.0;`)}
    for (var d = 0u; d < VECTORS; d++) {
      ${this.#eachRow((i) => `let x${i} = ${operand}_at(${vector} + d, row${i});`)}
      ${range(this.mine).map((j) => `let y${j} = ${tile}[(tx + ${j * SIDE}u) * STRIDE + d];`).join("\n      ")}
      ${this.#eachPair((i, j) => `${out}${i}_${j} += dot(x${i}, y${j});`)}
    }`;
  }

  #masked(i: number, j: number): string {
    const key = `key_first + tx + ${j * SIDE}u`;
    return `select(MASKED, s${i}_${j} * SCALE_LOG2, ${key} >= first${i} && ${key} <= row${i})`;
  }

  #maximum(values: readonly string[]): string {
    return values.reduce((sum, value) => `max(${sum}, ${value})`);
  }

  #drop(i: number, assign: (j: number) => string): string {
    if (this.shape.dropout === null) return "";
    return range(this.mine).map((j) => `${assign(j)}keep_factor(row${i}, key_first + tx + ${j * SIDE}u, head);`).join(
      " ",
    );
  }

  #share(into: string, values: string): string {
    return range(this.mine).map((j) =>
      `${into}[(tx + ${j * SIDE}u) * SIDE + ty] = vec4f(${range(EACH).map((i) => `${values}${i}_${j}`).join(", ")});`
    ).join("\n    ");
  }

  #product(jobs: readonly (readonly string[])[]): string {
    const lines = jobs.flatMap(([out, weights, tile]) => [
      `let ${out}w = ${weights}[key * SIDE + ty];`,
      ...range(this.vectors).flatMap((c) => [
        `let ${out}x${c} = ${tile}[key * STRIDE + ${this.#column(c)}];`,
        ...range(EACH).map((i) => `${out}${i}_${c} = fma(vec4f(${out}w.${PARTS[i]}), ${out}x${c}, ${out}${i}_${c});`),
      ]),
    ]);
    return `for (var key = 0u; key < KEYS; key++) {
      ${lines.join("\n      ")}
    }`;
  }

  #column(c: number): string {
    const vector = `tx + ${c * SIDE}u`;
    return (c + 1) * SIDE > this.shape.width / 4 ? `min(${vector}, VECTORS - 1u)` : vector;
  }

  #store(out: string, vector: string, factor: (i: number) => string, from = out): string {
    return this.#eachRow((i) => {
      const stores = range(this.vectors).map((c) => {
        const column = `tx + ${c * SIDE}u`;
        return `if (${column} < VECTORS) { set_${out}(${vector} + ${column}, row${i}, ${from}${i}_${c} * factor); }`;
      });
      return `if (row_first + ty * EACH + ${i}u < u.rows) { let factor = ${factor(i)}; ${stores.join(" ")} }`;
    });
  }
}
