/**
 * WGSL of norms: a workgroup goes through a few rows, its lanes hold a row in registers and the parameters for all of them.
 * It knows no tensor.
 */
import type { Capabilities } from "./gpu/graph.ts";
import { f32, GRID_WIDTH, range, wgsl } from "./gpu/wgsl.ts";
import { type Dropout, keptText } from "./pointwise.ts";

export interface NormShape {
  /** "layer" subtracts the mean, "rms" doesn't. */
  readonly kind: "layer" | "rms";
  readonly columns: number;
  /** What is dropped from x before the sum. */
  readonly dropout: Dropout | null;
}

/** Values of a row that a lane may hold where a subgroup alone does the row; with more it gets help. */
const MOST_HELD = 64;

/** Lanes of a workgroup, and how they add up: shuffles where a subgroup is trusted and cheap, else workgroup memory. */
function lanesFor(width: number, device: Capabilities): { readonly count: number; readonly total: string } {
  const size = device.subgroupSize;
  if (device.cpu && size > 0 && width <= MOST_HELD * size) {
    const steps = range(Math.log2(size)).map((i) => `sum += subgroupShuffleXor(sum, ${1 << i}u);`);
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

/** A shader over rows, written by what it does once and for each row. */
export class NormText {
  /** Elements of a vector, vectors of a row, lanes that hold it, vectors each holds. */
  readonly vector: 1 | 4;
  readonly width: number;
  readonly lanes: number;
  readonly held: number;
  readonly #total: string;

  constructor(readonly shape: NormShape, readonly rows: number, device: Capabilities) {
    this.vector = shape.columns % 4 === 0 ? 4 : 1;
    this.width = shape.columns / this.vector;
    const { count, total } = lanesFor(this.width, device);
    this.lanes = count;
    this.#total = total;
    this.held = Math.ceil(this.width / count);
  }

  /** y = norm(x, or x + skip) · weight + bias, and each row's mean and 1 / deviation. */
  forward(eps: number, residual: boolean): string {
    const layer = this.shape.kind === "layer";
    const bias = layer ? ["read> bias: array<T>"] : [];
    return this.#shader({
      names: [
        ...["read> x: array<T>", ...(residual ? ["read> skip: array<T>"] : []), "read> weight: array<T>", ...bias],
        ...this.#counter,
        ...(residual ? ["read_write> sum: array<T>"] : []),
        ...["read_write> y: array<T>", "read_write> statistics: array<vec2f>"],
      ],
      once: [this.#load("w", "weight", "lane"), layer ? this.#load("b", "bias", "lane") : ""],
      each: [
        ...this.#sums(residual),
        layer ? `let mean = total(lane, ${this.#sum((j) => `x${j}`)}) / COLUMNS;` : "let mean = 0.0;",
        this.#lines((j) => `x${j} -= mean;`),
        `let rstd = 1.0 / sqrt(total(lane, ${this.#sum((j) => `x${j} * x${j}`)}) / COLUMNS + ${f32(eps)});`,
        this.#lines((j) => `y[at + ${j * this.lanes}u] = x${j} * rstd * w${j}${layer ? ` + b${j}` : ""};`),
        "if (lane == 0u) { statistics[row] = vec2f(mean, rstd); }",
      ],
      after: [],
    });
  }

  /** A row of x, or of x + skip, in registers; the sum also in memory. */
  #sums(residual: boolean): string[] {
    if (!residual) return [this.#load("x", "x", "at")];
    if (this.shape.dropout) return [this.#masked("sum[i] = x[i] * mask + skip[i];"), this.#load("x", "sum", "at")];
    const add = (j: number) => `x${j} += s${j}; sum[at + ${j * this.lanes}u] = x${j};`;
    return [this.#load("x", "x", "at"), this.#load("s", "skip", "at"), this.#lines(add)];
  }

  /** dx, or dx added, and for the workgroup's rows the sums that make dweight and dbias. */
  backward(adds: boolean): string {
    const layer = this.shape.kind === "layer";
    const sums = ["dw", ...(layer ? ["db"] : [])];
    return this.#shader({
      names: [
        ...["dy", "x"].map((name) => `read> ${name}: array<T>`),
        ...["read> statistics: array<vec2f>", "read> weight: array<T>", ...this.#counter],
        ...["dx", "dweights", ...(layer ? ["dbiases"] : []), ...(this.shape.dropout ? ["dbranch"] : [])].map((name) =>
          `read_write> ${name}: array<T>`
        ),
      ],
      once: [this.#load("w", "weight", "lane"), ...sums.map((name) => this.#zeroes(name))],
      each: [
        "let mean = statistics[row].x; let rstd = statistics[row].y;",
        this.#load("g", "dy", "at"),
        this.#load("x", "x", "at"),
        this.#lines((j) =>
          `x${j} = (x${j} - mean) * rstd; dw${j} += g${j} * x${j};${layer ? ` db${j} += g${j};` : ""} g${j} *= w${j};`
        ),
        layer ? `let along = total(lane, ${this.#sum((j) => `g${j}`)}) / COLUMNS;` : "",
        `let across = total(lane, ${this.#sum((j) => `g${j} * x${j}`)}) / COLUMNS;`,
        this.#lines((j) => {
          const place = `dx[at + ${j * this.lanes}u]`;
          const sum = `${adds ? `${place} + ` : ""}rstd * (g${j}${layer ? " - along" : ""} - x${j} * across)`;
          return `${place} = ${sum};`;
        }),
        this.shape.dropout ? this.#masked("dbranch[i] = dx[i] * mask;") : "",
      ],
      after: [
        "let part = block * WIDTH + lane;",
        this.#lines((j) => `dweights[part + ${j * this.lanes}u] = dw${j};`),
        layer ? this.#lines((j) => `dbiases[part + ${j * this.lanes}u] = db${j};`) : "",
      ],
    });
  }

  get #counter(): string[] {
    return this.shape.dropout ? ["read> counter: array<u32>"] : [];
  }

  /** A loop over what a lane holds of a row: unrolled, masks would compile for seconds. */
  #masked(line: string): string {
    const kept = this.vector === 4 ? "kept(row, place)" : "kept(row, place / 4u)[place % 4u]";
    return `for (var place = lane; place < WIDTH; place += LANES) {
      let i = row * WIDTH + place; let mask = ${kept}; ${line}
    }`;
  }

  #shader(parts: { names: string[]; once: string[]; each: string[]; after: string[] }): string {
    const scalar = "alias T = f32;\nfn dot(a: f32, b: f32) -> f32 { return a * b; }";
    const bindings = [...parts.names, "uniform> u: Uniforms"].map((name, i) =>
      `@group(0) @binding(${i}) var<${name.startsWith("uniform") ? "" : "storage, "}${name};`
    );
    const constants = {
      LANES: this.lanes,
      GRID_WIDTH,
      WIDTH: this.width,
      COLUMNS: { f32: this.shape.columns },
      ROWS: this.rows,
    };
    return `${this.vector === 4 ? "alias T = vec4f;" : scalar}
struct Uniforms { rows: u32 }
${wgsl(bindings.join("\n"), constants)}
${this.shape.dropout ? keptText(this.shape.dropout) : ""}
${this.#total}
@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let block = group.x + group.y * GRID_WIDTH;
  if (block * ROWS >= u.rows) { return; }
  ${parts.once.join("\n  ")}
  for (var row = block * ROWS; row < min((block + 1u) * ROWS, u.rows); row++) {
    let at = row * WIDTH + lane;
    ${parts.each.join("\n    ")}
  }
  ${parts.after.join("\n  ")}
}`;
  }

  /** A line for each vector a lane holds; the last may be past the row's end. */
  #lines(line: (j: number) => string): string {
    return range(this.held).map((j) => this.#guarded(j, line(j))).join("\n    ");
  }

  #guarded(j: number, line: string): string {
    return (j + 1) * this.lanes > this.width ? `if (lane + ${j * this.lanes}u < WIDTH) { ${line} }` : line;
  }

  #zeroes(name: string): string {
    return range(this.held).map((j) => `var ${name}${j} = T();`).join(" ");
  }

  #load(name: string, from: string, at: string): string {
    return `${this.#zeroes(name)}\n    ${this.#lines((j) => `${name}${j} = ${from}[${at} + ${j * this.lanes}u];`)}`;
  }

  #sum(term: (j: number) => string): string {
    return range(this.held).map(term).join(" + ");
  }
}
