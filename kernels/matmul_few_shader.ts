/**
 * WGSL of products with few rows: weights stream through once, in any stored format, and all rows of the result are held
 * in registers. It knows neither tensors nor sizes: those are uniforms.
 *
 * On CPU drivers a load costs as much as a dozen multiply-adds: lanes of a subgroup load different parts of the rows and
 * pass them round by shuffles. On GPUs many invocations share a column's inner dimension, so that few columns keep them
 * all busy, and add up through workgroup memory.
 */
import { range } from "./gpu/wgsl.ts";
import type { Source } from "./matmul_shader.ts";
import { GROUP } from "./quantize.ts";
import { placeOf, UNPACKING, type WeightFormat } from "./unpacking.ts";

export interface FewEpilogue {
  readonly bias: boolean;
  readonly accumulate: boolean;
}

export interface FewShape {
  readonly format: WeightFormat;
  /** How weights and scales are read. */
  readonly source: Source;
  /** Rows of the result in registers: 1, 2, 4 or 8. */
  readonly rows: number;
}

/** Weights stored (K, N), a workgroup of `lanes` along N. */
export interface AcrossShape extends FewShape {
  readonly lanes: number;
  /** Whether lanes share their loads of A by shuffles; the workgroup is one subgroup then. */
  readonly shuffle: boolean;
  /** 16-byte pieces of each row of B that a lane takes. */
  readonly pieces: number;
  /** Steps of the inner dimension in one pass of the loop, a multiple of 4. */
  readonly depth: number;
}

/** Weights stored (N, K), a workgroup of `lanes` along K. */
export interface AlongShape extends FewShape {
  readonly lanes: number;
  /** Whether sums are made by shuffles, the workgroup being one subgroup, else through workgroup memory. */
  readonly shuffle: boolean;
  /** Rows of B a workgroup takes. */
  readonly columns: number;
  /** How A is read. */
  readonly sourceOfA: Source;
}

/** Weights stored (K, N), the workgroup's invocations `across` columns and `along` the inner dimension; buffers only. */
export interface SharedShape extends FewShape {
  readonly across: number;
  readonly along: number;
}

const PARTS = "xyzw";

/** `b_stride` and `s_stride` count 16-byte pieces, the others elements. */
const SIZES = `struct Sizes {
  m: u32, n: u32, k: u32, a_stride: u32, b_stride: u32, s_stride: u32, c_stride: u32, c_column: u32,
}`;

const isScaled = (format: WeightFormat) => format === "i8" || format === "i4";

/** Bindings: a, b, scales where there are, c, bias where there is, sizes. */
function declarations(
  { format, source }: FewShape,
  { bias }: FewEpilogue,
  a: Source,
  result: "vec4f" | "f32",
): string {
  const { element, texture } = UNPACKING[format];
  const operand = (name: string, as: Source, type: string, texels: string) =>
    as === "texture"
      ? `var ${name}: texture_storage_2d<${texels}, read>;`
      : `var<storage, read> ${name}: array<${type}>;`;
  const all = [
    operand("a", a, "vec4f", "rgba32float"),
    operand("b", source, element, texture),
    ...(isScaled(format) ? [operand("scales", source, "vec4f", "rgba32float")] : []),
    `var<storage, read_write> c: array<${result}>;`,
    ...(bias ? [`var<storage, read> bias: array<${result}>;`] : []),
    "var<uniform> sizes: Sizes;",
  ];
  return [SIZES, ...all.map((text, i) => `@group(0) @binding(${i}) ${text}`)].join("\n");
}

function loadA(source: Source, x: string, row: string): string {
  return source === "texture" ? `textureLoad(a, vec2u(${x}, ${row}))` : `a[(${row}) * sizes.a_stride / 4u + ${x}]`;
}

function loadPiece(name: "b" | "scales", source: Source, x: string, row: string): string {
  const stride = name === "b" ? "b_stride" : "s_stride";
  return source === "texture"
    ? `textureLoad(${name}, vec2u(${x}, ${row}))`
    : `${name}[(${row}) * sizes.${stride} + ${x}]`;
}

/** A statement that stores `value`, made of four neighbours where the buffer holds vectors. */
function store(row: string, column: string, value: string, vector: boolean, epilogue: FewEpilogue): string {
  const per = vector ? " / 4u" : "";
  const place = `c[((${row}) * sizes.c_stride + sizes.c_column + ${column})${per}]`;
  const added = epilogue.bias ? ` + bias[(sizes.c_column + ${column})${per}]` : "";
  return `${place} = ${epilogue.accumulate ? `${place} + ` : ""}${value}${added};`;
}

/** Stores the vectors of one piece of a row, put in order; `sums` names vector v. */
function storePiece(
  row: number,
  piece: string,
  format: WeightFormat,
  sums: (v: number) => string,
  epilogue: FewEpilogue,
): string {
  const { weights, place } = UNPACKING[format];
  const vectors = weights / 4;
  return range(vectors).map((i) => {
    const column = `(${piece}) * ${weights}u + ${4 * i}u`;
    const parts = range(4).map((part) => {
      const [v, e] = placeOf({ vectors, place }, 4 * i + part);
      return `${sums(v)}.${PARTS[e]}`;
    });
    const statement = store(`first_row + ${row}u`, column, `vec4f(${parts.join(", ")})`, true, epilogue);
    return `if (${column} < sizes.n) { ${statement} }`;
  }).join(" ");
}

/** Scales of a piece's vectors, in the order in which vectors hold its columns. */
function pieceScales(j: number, piece: string, { format, source }: FewShape): string[] {
  const { weights, place } = UNPACKING[format];
  const vectors = weights / 4;
  return [
    ...range(vectors).map((i) =>
      `let z${j}_${i} = ${loadPiece("scales", source, `(${piece}) * ${vectors}u + ${i}u`, `k / ${GROUP}u`)};`
    ),
    ...range(vectors).map((v) => {
      const parts = range(4).map((e) => `z${j}_${place(v, e) >> 2}.${PARTS[place(v, e) & 3]}`);
      return `let s${j}_${v} = vec4f(${parts.join(", ")});`;
    }),
  ];
}

/** Lanes along the columns of B. */
export function acrossShader(shape: AcrossShape, epilogue: FewEpilogue): string {
  const { format, lanes, rows, pieces, depth, shuffle } = shape;
  const vectors = UNPACKING[format].weights / 4;
  const scaled = isScaled(format);
  const sums = range(rows).flatMap((m) => range(pieces * vectors).map((v) => `${m}_${v}`));
  const all = (text: (name: string) => string) => sums.map(text).join(" ");
  const piece = (j: number) => `first_piece + ${j * lanes}u`;
  const scales = scaled ? range(pieces).flatMap((j) => pieceScales(j, piece(j), shape)) : [];
  const into = scaled ? "g" : "c";
  const pass = acrossPass(shape, into).join("\n    ");
  const fold = range(rows).flatMap((m) =>
    range(pieces * vectors).map((v) =>
      `c${m}_${v} = fma(g${m}_${v}, s${Math.floor(v / vectors)}_${v % vectors}, c${m}_${v});`
    )
  ).join(" ");
  const loop = !scaled
    ? `for (var k = 0u; k < sizes.k; k += ${depth}u) {\n    ${pass}\n  }`
    : depth === GROUP
    ? `for (var k = 0u; k < sizes.k; k += ${GROUP}u) {
    ${all((name) => `var g${name} = vec4f();`)}
    ${scales.join("\n    ")}
    ${pass}
    ${fold}
  }`
    : `for (var group_k = 0u; group_k < sizes.k; group_k += ${GROUP}u) {
    ${all((name) => `var g${name} = vec4f();`)}
    for (var k = group_k; k < group_k + ${GROUP}u; k += ${depth}u) {
    ${pass}
    }
    let k = group_k;
    ${scales.join("\n    ")}
    ${fold}
  }`;
  return `${declarations(shape, epilogue, "buffer", "vec4f")}
@compute @workgroup_size(${lanes})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32${
    shuffle ? ", @builtin(subgroup_invocation_id) lane: u32" : ""
  }) {
  let first_row = group.y * ${rows}u;
  let first_piece = group.x * ${pieces * lanes}u + ${shuffle ? "lane" : "local"};
  ${all((name) => `var c${name} = vec4f();`)}
  ${loop}
  ${
    range(rows).map((m) => {
      const stores = range(pieces).map((j) =>
        storePiece(m, piece(j), format, (v) => `c${m}_${j * vectors + v}`, epilogue)
      );
      return `if (first_row + ${m}u < sizes.m) { ${stores.join(" ")} }`;
    }).join("\n  ")
  }
}`;
}

/** One pass over `depth` steps of the inner dimension. */
function acrossPass({ format, source, lanes, rows, pieces, depth, shuffle }: AcrossShape, into: string): string[] {
  const { weights, unpack } = UNPACKING[format];
  const vectors = weights / 4;
  // Lanes that load one row of A; with more rows than lanes, each lane loads several.
  const per = shuffle ? Math.max(1, Math.min(lanes / rows, depth / 4)) : 1;
  const held = shuffle ? Math.max(1, rows / lanes) : rows;
  const lines = range(depth / (4 * per)).flatMap((chunk) =>
    range(held).map((part) => {
      const row = shuffle
        ? `first_row + (lane / ${per}u) % ${rows / held}u + ${part * rows / held}u`
        : `first_row + ${part}u`;
      const x = `k / 4u + ${chunk * per}u${per > 1 ? ` + lane % ${per}u` : ""}`;
      return `let x${chunk}_${part} = ${loadA("buffer", x, row)};`;
    })
  );
  const value = (m: number, step: number) => {
    const chunk = Math.floor(step / (4 * per));
    const own = `x${chunk}_${Math.floor(m * held / rows)}.${PARTS[step & 3]}`;
    const lane = (m % (rows / held)) * per + (step % (4 * per) >> 2);
    return shuffle ? `subgroupShuffle(${own}, ${lane}u)` : own;
  };
  for (const step of range(depth)) {
    for (const j of range(pieces)) {
      const raw = loadPiece("b", source, `first_piece + ${j * lanes}u`, `k + ${step}u`);
      lines.push(`let r${step}_${j} = ${raw};`);
      for (const v of range(vectors)) {
        lines.push(`let w${step}_${j * vectors + v} = ${unpack(`r${step}_${j}`, v)};`);
      }
    }
    for (const m of range(rows)) {
      const name = `a${step}_${m}`;
      const products = range(pieces * vectors).map((v) =>
        `${into}${m}_${v} = fma(${name}, w${step}_${v}, ${into}${m}_${v});`
      );
      lines.push(`let ${name} = vec4f(${value(m, step)}); ${products.join(" ")}`);
    }
  }
  return lines;
}

/** Lanes along the inner dimension. */
export function alongShader(shape: AlongShape, epilogue: FewEpilogue): string {
  const { format, lanes, rows, columns, shuffle } = shape;
  const { weights } = UNPACKING[format];
  const pairs = range(rows).flatMap((m) => range(columns).map((i) => [m, i] as const));
  const finish = shuffle ? shuffledSums(shape, epilogue) : sharedSums(shape, epilogue);
  return `${declarations(shape, epilogue, shape.sourceOfA, "f32")}
${finish.declared}
@compute @workgroup_size(${lanes})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32${
    shuffle ? ", @builtin(subgroup_invocation_id) lane: u32" : ""
  }) {
  ${shuffle ? "" : "let lane = local;"}
  let first_column = group.x * ${columns}u;
  let first_row = group.y * ${rows}u;
  ${pairs.map(([m, i]) => `var c${m}_${i} = vec4f();`).join(" ")}
  for (var t = lane; t < sizes.k / ${weights}u; t += ${lanes}u) {
    ${alongPass(shape).join("\n    ")}
  }
  ${finish.text}
}`;
}

function alongPass({ format, source, sourceOfA, rows, columns }: AlongShape): string[] {
  const { weights, unpack, place } = UNPACKING[format];
  const vectors = weights / 4;
  const scaled = isScaled(format);
  const ordered = weights === 4;
  const lines = range(rows).flatMap((m) => [
    ...range(vectors).map((v) =>
      `let ${ordered ? "x" : "z"}${m}_${v} = ${loadA(sourceOfA, `t * ${vectors}u + ${v}u`, `first_row + ${m}u`)};`
    ),
    ...(ordered ? [] : range(vectors).map((v) => {
      const parts = range(4).map((e) => `z${m}_${place(v, e) >> 2}.${PARTS[place(v, e) & 3]}`);
      return `let x${m}_${v} = vec4f(${parts.join(", ")});`;
    })),
  ]);
  if (scaled) {
    lines.push(
      ...range(columns / 4).map((s) =>
        `let s${s} = ${
          loadPiece(
            "scales",
            source,
            `t / ${GROUP / weights}u * 4u + first_column % 16u / 4u + ${s}u`,
            "first_column / 16u",
          )
        };`
      ),
    );
  }
  for (const i of range(columns)) {
    lines.push(`let r${i} = ${loadPiece("b", source, "t", `first_column + ${i}u`)};`);
    lines.push(...range(vectors).map((v) => `let w${i}_${v} = ${unpack(`r${i}`, v)};`));
    for (const m of range(rows)) {
      const sum = `c${m}_${i}`;
      if (scaled) {
        const product = range(vectors).map((v) => `w${i}_${v} * x${m}_${v}`).join(" + ");
        lines.push(`${sum} = fma(${product}, vec4f(s${i >> 2}.${PARTS[i & 3]}), ${sum});`);
      } else {
        lines.push(...range(vectors).map((v) => `${sum} = fma(w${i}_${v}, x${m}_${v}, ${sum});`));
      }
    }
  }
  return lines;
}

/** Lane i stores column i. */
function shuffledSums({ lanes, rows, columns }: AlongShape, epilogue: FewEpilogue): { declared: string; text: string } {
  const chosen = range(Math.ceil(columns / lanes));
  const text = range(rows).flatMap((m) =>
    chosen.map((part) => {
      const own = range(Math.min(lanes, columns - part * lanes));
      const sums = own.map((i) => `sum = select(sum, lane_sum(c${m}_${part * lanes + i}), lane == ${i}u);`);
      const column = `first_column + ${part * lanes}u + lane`;
      const inside = `first_row + ${m}u < sizes.m && lane < ${own.length}u && ${column} < sizes.n`;
      return `{ var sum = 0.0; ${sums.join(" ")}
    if (${inside}) { ${store(`first_row + ${m}u`, column, "sum", false, epilogue)} } }`;
    })
  ).join("\n  ");
  const declared = `fn lane_sum(x: vec4f) -> f32 {
  var sum = x.x + x.y + x.z + x.w;
  ${range(Math.log2(lanes)).map((bit) => `sum += subgroupShuffleXor(sum, ${1 << bit}u);`).join(" ")}
  return sum;
}`;
  return { declared, text };
}

/** Each invocation adds up and stores whole sums. */
function sharedSums({ lanes, rows, columns }: AlongShape, epilogue: FewEpilogue): { declared: string; text: string } {
  const pairs = rows * columns;
  const put = range(pairs).map((i) => {
    const sum = `c${Math.floor(i / columns)}_${i % columns}`;
    return `sums[${i * lanes}u + lane] = ${sum}.x + ${sum}.y + ${sum}.z + ${sum}.w;`;
  });
  const row = `first_row + pair / ${columns}u`;
  const column = `first_column + pair % ${columns}u`;
  const text = `${put.join(" ")}
  workgroupBarrier();
  for (var pair = lane; pair < ${pairs}u; pair += ${lanes}u) {
    if (${row} >= sizes.m || ${column} >= sizes.n) { continue; }
    var sum = 0.0;
    for (var i = 0u; i < ${lanes}u; i++) { sum += sums[pair * ${lanes}u + i]; }
    ${store(row, column, "sum", false, epilogue)}
  }`;
  return { declared: `var<workgroup> sums: array<f32, ${pairs * lanes}>;`, text };
}

/** Invocations along the inner dimension and across columns, sums through workgroup memory. */
export function sharedShader(shape: SharedShape, epilogue: FewEpilogue): string {
  const { format, rows, across, along } = shape;
  const { weights, unpack } = UNPACKING[format];
  const vectors = weights / 4;
  const names = range(rows).flatMap((m) => range(vectors).map((v) => `c${m}_${v}`));
  const scales = isScaled(format) ? pieceScales(0, "piece", shape) : [];
  const weight = (v: number) => `${unpack("raw", v)}${isScaled(format) ? ` * s0_${v}` : ""}`;
  const body = [
    `let raw = ${loadPiece("b", "buffer", "piece", "k")};`,
    ...scales,
    ...range(vectors).map((v) => `let w${v} = ${weight(v)};`),
    ...range(rows).map((m) =>
      `let x${m} = vec4f(a[(first_row + ${m}u) * sizes.a_stride + k]); ` +
      range(vectors).map((v) => `c${m}_${v} = fma(x${m}, w${v}, c${m}_${v});`).join(" ")
    ),
  ];
  const invocations = across * along;
  return `${declarations(shape, epilogue, "buffer", "vec4f").replace("a: array<vec4f>", "a: array<f32>")}
var<workgroup> sums: array<vec4f, ${vectors * invocations}>;
@compute @workgroup_size(${across}, ${along})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_id) local: vec3u) {
  let first_row = group.y * ${rows}u;
  let piece = group.x * ${across}u + local.x;
  let at = local.y * ${across}u + local.x;
  ${names.map((name) => `var ${name} = vec4f();`).join(" ")}
  if (piece * ${weights}u < sizes.n) {
    for (var k = local.y; k < sizes.k; k += ${along}u) {
      ${body.join("\n      ")}
    }
  }
  ${range(rows).map((m) => addAndStore(m, shape, epilogue)).join("\n  ")}
}`;
}

/** A row's sums: invocation (x, v) adds up vector v, invocation (x, 0) stores them all. */
function addAndStore(m: number, { format, across, along }: SharedShape, epilogue: FewEpilogue): string {
  const vectors = UNPACKING[format].weights / 4;
  const invocations = across * along;
  const sum = (v: number) => `sums[${v * invocations}u + local.x]`;
  return `${range(vectors).map((v) => `sums[${v * invocations}u + at] = c${m}_${v};`).join(" ")}
  workgroupBarrier();
  if (local.y < ${vectors}u) {
    let first = local.y * ${invocations}u + local.x;
    var sum = sums[first];
    for (var i = 1u; i < ${along}u; i++) { sum += sums[first + i * ${across}u]; }
    sums[first] = sum;
  }
  workgroupBarrier();
  if (local.y == 0u && first_row + ${m}u < sizes.m) { ${storePiece(m, "piece", format, sum, epilogue)} }
  workgroupBarrier();`;
}
