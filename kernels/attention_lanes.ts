/**
 * Attention by subgroups without workgroup memory, the fastest manner on CPU drivers: a subgroup holds a tile of rows in
 * registers, its lanes hold four keys each while scores are made and columns of a head while they are used, and what a
 * lane holds reaches the others by shuffles. It knows no tensor and no device.
 *
 * Online softmax: Milakov and Gimelshein 2018; tiles and the backward pass by recomputation: Dao et al. 2022.
 */
import {
  type AttentionShape,
  type AttentionVariant,
  declarations,
  iterationsOf,
  type Pass,
} from "./attention_shared.ts";
import { range } from "./gpu/wgsl.ts";

const PARTS = "xyzw";

/** Kernels for subgroups of `lanes` lanes; rows of operands come from textures or from buffers. */
export function laneVariant(shape: AttentionShape, lanes: number, textures: boolean): AttentionVariant {
  const wide = shape.width > 96;
  const text = new LaneText(shape, lanes, textures);
  const kernel = (wgsl: string, rows: number, heads: number, products: number, dropping: number) => ({
    wgsl,
    workgroups: (count: number) => [heads, Math.ceil(count / rows), 1] as const,
    iterations: (longest: number) => {
      const inner = products * iterationsOf(shape.width / 4) + iterationsOf(lanes) + (shape.dropout ? dropping : 0);
      return iterationsOf(Math.ceil((longest + rows + 3) / (4 * lanes)), inner);
    },
  });
  const rows = wide ? 8 : 16;
  // Four masks of a row come from one or two words.
  const ofRows = rows / 8 * iterationsOf(8, iterationsOf(2));
  const ofKeys = iterationsOf(4, iterationsOf(2, iterationsOf(2)));
  return {
    name: `${lanes} lanes, ${textures ? "textures" : "buffers"}`,
    textures,
    forward: kernel(text.forward(rows), rows, shape.heads, 1, ofRows),
    queries: kernel(text.queries(rows), rows, shape.heads, 2, ofRows),
    keys: kernel(text.keys(8), 8, shape.keyHeads, 2, ofKeys),
  };
}

/** Text of the three shaders of one shape. */
class LaneText {
  /** Vectors of a head's columns that each lane holds. */
  readonly vectors: number;

  constructor(readonly shape: AttentionShape, readonly lanes: number, readonly textures: boolean) {
    this.vectors = Math.ceil(shape.width / 4 / lanes);
  }

  forward(rows: number): string {
    const { dropout } = this.shape;
    return `${this.#openTile("forward", rows)}
  ${this.#holdings(rows, (t) => `let first${t} = starts[held${t}];`)}
  ${this.#accumulators("o", rows)}
  ${range(rows).map((i) => `var m${i} = MASKED; var z${i} = 0.0;`).join(" ")}
  for (var key_first = starts[row0] & ~3u; key_first < row_end; key_first += KEYS) {
    ${this.#holdKeys("key_first")}
    ${this.#scores("s", rows, "q", "q0", "k", "k0")}
    ${dropout ? this.#keptOfRows(rows) : ""}
    ${range(rows).map((i) => this.#softmaxRow(i)).join("\n    ")}
    ${this.#product(rows, [["o", "s", "v", "k0"]], "key_first", "row_end")}
  }
  ${range(rows).map((i) => `${this.#reduce("+", `z${i}`)} let r${i} = 1.0 / z${i};`).join("\n  ")}
  ${this.#store(rows, "o", "q0", (i) => `r${i}`)}
  ${this.#holdings(rows, (t) => `var l${t} = 0.0;`)}
  ${
      range(rows).map((i) => `if (lane == ${i % this.lanes}u) { ${this.#held("l", i)} = m${i} + log2(z${i}); }`).join(
        " ",
      )
    }
  ${
      this.#holdings(rows, (t) =>
        `if (${this.#ownsRow(rows, t)}) { lse[(row0 + lane + ${t * this.lanes}u) * HEADS + head] = l${t}; }`)
    }
}`;
  }

  queries(rows: number): string {
    const { dropout } = this.shape;
    return `${this.#openTile("queries", rows)}
  ${
      this.#holdings(rows, (t) =>
        `let stat${t} = statistics[held${t} * HEADS + head]; let first${t} = stat${t}.z;
  let lse${t} = bitcast<f32>(stat${t}.x); let delta${t} = bitcast<f32>(stat${t}.y);`)
    }
  ${this.#accumulators("o", rows)}
  for (var key_first = statistics[row0 * HEADS + head].z & ~3u; key_first < row_end; key_first += KEYS) {
    ${this.#holdKeys("key_first")}
    ${this.#scores("s", rows, "q", "q0", "k", "k0")}
    ${this.#scores("p", rows, "dy", "q0", "v", "k0")}
    ${dropout ? this.#keptOfRows(rows) : ""}
    ${
      range(rows).map((i) =>
        `{ let x = select(vec4f(MASKED), s${i} * SCALE_LOG2, ${this.#visible(i)});
      ${dropout ? `p${i} = ${this.#dropped(`p${i}`, this.#keptRow(i))};` : ""}
      s${i} = exp2(x - ${this.#shuffled("lse", i)}) * (p${i} - ${this.#shuffled("delta", i)}); }`
      ).join("\n    ")
    }
    ${this.#product(rows, [["o", "s", "k", "k0"]], "key_first", "row_end")}
  }
  ${this.#store(rows, "dq", "q0", () => "SCALE", "o")}
}`;
  }

  /** Here a tile's rows are keys, and lanes hold four queries each. */
  keys(rows: number): string {
    const { dropout } = this.shape;
    return `${this.#open("keys", rows)}
  let row0 = group.y * ROWS;
  let row_end = min(row0 + ROWS, u.rows);
  let key_head = group.x;
  let k0 = key_head * VECTORS;
  ${this.#holdRows(rows)}
  ${this.#accumulators("o", rows)}
  ${this.#accumulators("e", rows)}
  for (var head = key_head * GROUP + FIRST_HEAD; head < key_head * GROUP + END_HEAD; head++) {
    let q0 = head * VECTORS;
    for (var query_first = row0; query_first < u.rows; query_first += KEYS) {
      if (statistics[query_first * HEADS + head].z >= row_end) { break; }
      ${this.#holdKeys("query_first")}
      ${range(4).map((e) => `let stat${e} = statistics[held_key${e} * HEADS + head];`).join(" ")}
      let first = select(vec4u(0xffffffffu), vec4u(stat0.z, stat1.z, stat2.z, stat3.z), keys < vec4u(u.rows));
      let lse = bitcast<vec4f>(vec4u(stat0.x, stat1.x, stat2.x, stat3.x));
      let delta = bitcast<vec4f>(vec4u(stat0.y, stat1.y, stat2.y, stat3.y));
      ${this.#scores("s", rows, "k", "k0", "q", "q0")}
      ${this.#scores("p", rows, "v", "k0", "dy", "q0")}
      ${dropout ? this.#keptOfKeys(rows) : ""}
      ${
      range(rows).map((i) => {
        const seen = `(keys >= vec4u(row0 + ${i}u)) & (first <= vec4u(row0 + ${i}u))`;
        const kept = `((kept >> vec4u(${i}u)) & vec4u(1u)) != vec4u()`;
        return `{ let w = exp2(select(vec4f(MASKED), s${i} * SCALE_LOG2, ${seen}) - lse);
        p${i} = w * (${dropout ? this.#dropped(`p${i}`, kept) : `p${i}`} - delta);
        s${i} = ${dropout ? this.#dropped("w", kept) : "w"}; }`;
      }).join("\n      ")
    }
      ${this.#product(rows, [["o", "s", "dy", "q0"], ["e", "p", "q", "q0"]], "query_first", "u.rows")}
    }
  }
  ${this.#store(rows, "dv", "k0", () => "1.0", "o")}
  ${this.#store(rows, "dk", "k0", () => "SCALE", "e")}
}`;
  }

  /** Opens a pass over tiles of query rows, the last tile first: it is the heaviest. */
  #openTile(pass: "forward" | "queries", rows: number): string {
    return `${this.#open(pass, rows)}
  let tile = groups.y - 1u - group.y;
  let row0 = tile * ROWS;
  let row_end = min(row0 + ROWS, u.rows);
  let head = group.x;
  let q0 = head * VECTORS;
  let k0 = head / GROUP * VECTORS;
  ${this.#holdRows(rows)}`;
  }

  #open(pass: Pass, rows: number): string {
    return `${declarations(this.shape, pass, this.textures)}
const ROWS = ${rows}u;
const KEYS = ${4 * this.lanes}u;
@compute @workgroup_size(${this.lanes})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(subgroup_invocation_id) lane: u32) {
  let last = u.rows - 1u;`;
  }

  /** Row i of the tile is held by lane i % lanes, in holding i / lanes. */
  #holdings(rows: number, line: (t: number) => string): string {
    return range(Math.ceil(rows / this.lanes)).map(line).join("\n  ");
  }

  #holdRows(rows: number): string {
    return this.#holdings(rows, (t) => `let held${t} = min(row0 + lane + ${t * this.lanes}u, last);`);
  }

  #held(name: string, i: number): string {
    return `${name}${Math.floor(i / this.lanes)}`;
  }

  #shuffled(name: string, i: number, part = ""): string {
    return `subgroupShuffle(${this.#held(name, i)}${part}, ${i % this.lanes}u)`;
  }

  #ownsRow(rows: number, t: number): string {
    const within = rows < this.lanes ? `lane < ${rows}u && ` : "";
    return `${within}row0 + lane + ${t * this.lanes}u < u.rows`;
  }

  #holdKeys(base: string): string {
    return `let keys = vec4u(${base} + lane * 4u) + vec4u(0u, 1u, 2u, 3u);
    ${range(4).map((e) => `let held_key${e} = min(keys.${PARTS[e]}, last);`).join(" ")}`;
  }

  #accumulators(name: string, rows: number): string {
    return range(rows).map((i) => range(this.vectors).map((j) => `var ${name}${i}_${j} = vec4f();`).join(" ")).join(
      "\n  ",
    );
  }

  /** `out`i = the products of the tile's row i with the lane's four keys. One vector at a time: longer bodies are slower. */
  #scores(out: string, rows: number, left: string, leftVector: string, right: string, rightVector: string): string {
    const sums = range(4).map((part) => {
      const p = PARTS[part];
      return [
        `let w${part} = vec4f(${range(4).map((e) => `b${e}.${p}`).join(", ")});`,
        ...range(rows).map((i) => `${out}${i} = fma(vec4f(${this.#shuffled("a", i, `.${p}`)}), w${part}, ${out}${i});`),
      ].join("\n      ");
    });
    return `${range(rows).map((i) => `var ${out}${i} = vec4f();`).join(" ")}
    for (var d = 0u; d < VECTORS; d++) {
      ${this.#holdings(rows, (t) => `let a${t} = ${left}_at(${leftVector} + d, held${t});`)}
      ${range(4).map((e) => `let b${e} = ${right}_at(${rightVector} + d, held_key${e});`).join("\n      ")}
      ${sums.join("\n      ")}
    }`;
  }

  /** Adds to `out`i_j what the weights of row i make of the operand's rows, for each job. */
  #product(rows: number, jobs: readonly (readonly string[])[], base: string, end: string): string {
    const lines = range(4).flatMap((e) => [
      `let row${e} = min(${base} + owner * 4u + ${e}u, last);`,
      ...jobs.flatMap(([out, weights, operand, vector]) => [
        ...range(this.vectors).map((j) =>
          `let ${out}v${e}_${j} = ${operand}_at(${vector} + ${this.#column(j)}, row${e});`
        ),
        ...range(rows).map((i) =>
          `let ${out}w${e}_${i} = vec4f(subgroupShuffle(${weights}${i}.${PARTS[e]}, owner)); ` +
          range(this.vectors).map((j) => `${out}${i}_${j} = fma(${out}w${e}_${i}, ${out}v${e}_${j}, ${out}${i}_${j});`)
            .join(" ")
        ),
      ]),
    ]);
    return `let used = (min(${base} + KEYS, ${end}) - ${base} + 3u) / 4u;
    for (var owner = 0u; owner < used; owner++) {
      ${lines.join("\n      ")}
    }`;
  }

  /** The head's vector that a lane holds as its j-th; lanes past the head's end repeat its last. */
  #column(j: number): string {
    const vector = `lane + ${j * this.lanes}u`;
    return (j + 1) * this.lanes > this.shape.width / 4 ? `min(${vector}, VECTORS - 1u)` : vector;
  }

  #store(rows: number, out: string, vector: string, factor: (i: number) => string, from = out): string {
    return range(rows).map((i) => {
      const stores = range(this.vectors).map((j) => {
        const column = `lane + ${j * this.lanes}u`;
        const store = `set_${out}(${vector} + ${column}, row0 + ${i}u, ${from}${i}_${j} * ${factor(i)});`;
        const ragged = (j + 1) * this.lanes > this.shape.width / 4;
        return ragged ? `if (${column} < VECTORS) { ${store} }` : store;
      });
      return `if (row0 + ${i}u < u.rows) { ${stores.join(" ")} }`;
    }).join("\n  ");
  }

  #visible(i: number): string {
    return `(keys <= vec4u(row0 + ${i}u)) & (keys >= vec4u(${this.#shuffled("first", i)}))`;
  }

  /** One row of online softmax: s becomes weights, what was summed before shrinks to the new maximum. */
  #softmaxRow(i: number): string {
    const dropped = this.shape.dropout ? ` s${i} = ${this.#dropped(`s${i}`, this.#keptRow(i))};` : "";
    return `{ let x = select(vec4f(MASKED), s${i} * SCALE_LOG2, ${this.#visible(i)});
      var top = max(max(x.x, x.y), max(x.z, x.w)); ${this.#reduce("max", "top")}
      let m = max(m${i}, top); let shrink = exp2(m${i} - m); m${i} = m; s${i} = exp2(x - m);
      z${i} = z${i} * shrink + (s${i}.x + s${i}.y + s${i}.z + s${i}.w);${dropped}
      ${range(this.vectors).map((j) => `o${i}_${j} *= shrink;`).join(" ")} }`;
  }

  #reduce(kind: "+" | "max", x: string): string {
    const steps = range(Math.log2(this.lanes)).map((bit) => {
      const other = `subgroupShuffleXor(${x}, ${1 << bit}u)`;
      return `${x} = ${kind === "+" ? `${x} + ${other}` : `max(${x}, ${other})`};`;
    });
    return steps.join(" ");
  }

  /** kept`n`: a nibble for each of eight rows, of the lane's four keys. In a loop: the generator is long. */
  #keptOfRows(rows: number): string {
    return range(rows / 8).map((n) =>
      `var kept${n} = 0u;
    for (var i = 0u; i < 8u; i++) { kept${n} |= kept4(row0 + ${n * 8}u + i, keys.x, head) << (i * 4u); }`
    ).join("\n    ");
  }

  #keptRow(i: number): string {
    const bits = range(4).map((e) => `${(1 << (i % 8 * 4 + e)) >>> 0}u`);
    return `(vec4u(kept${Math.floor(i / 8)}) & vec4u(${bits.join(", ")})) != vec4u()`;
  }

  /** kept: a word for each of the lane's four queries, a bit for each key of the tile. */
  #keptOfKeys(rows: number): string {
    return `var kept = vec4u();
      for (var e = 0u; e < 4u; e++) {
        var bits = 0u;
        for (var i = 0u; i < ${rows}u; i += 4u) { bits |= kept4(keys.x + e, row0 + i, head) << i; }
        kept = vec4u(kept.yzw, bits);
      }`;
  }

  #dropped(value: string, kept: string): string {
    return `select(vec4f(), ${value} * KEEP_SCALE, ${kept})`;
  }
}
