/**
 * WGSL of the matmul kernels that hold a block of the result in registers and use no workgroup memory. It knows neither
 * tensors nor sizes: those are uniforms, so that one shader serves every shape.
 *
 * An invocation holds `rows` x `vectors` vec4 sums. With `lanes` > 1 the lanes of a subgroup load different parts of A
 * and pass them round by shuffles: on CPU drivers, where a load costs as much as a dozen multiply-adds, that is what
 * makes a matmul fast (LOG.md). Operands come in pieces of 16 bytes: 4 f32 or 8 halves, unpacked where they are loaded.
 */

import { range } from "./gpu/wgsl.ts";
import {
  type Element,
  type Epilogue,
  type Form,
  type Formats,
  loadPiece,
  pieceDeclarations,
  type Source,
} from "./matmul_shader.ts";
import { placeOf, UNPACKING } from "./unpacking.ts";

/** What a block is for. */
export interface BlockUse {
  readonly form: Form;
  readonly formats: Formats;
  readonly source: Source;
}

export interface Block extends BlockUse {
  /** Lanes of the subgroup that share their loads of A; 1: none do. A sharing workgroup is one subgroup. */
  readonly lanes: number;
  /** Rows of the result an invocation holds. */
  readonly rows: number;
  /** vec4 columns of the result an invocation holds. */
  readonly vectors: number;
  /** Steps of the inner dimension in one pass of the loop. */
  readonly depth: number;
  readonly workgroup: readonly [x: number, y: number];
}

const PARTS = "xyzw";

/** Rows and columns of the result that one workgroup makes. */
export function blockTile(
  { lanes, rows, vectors, workgroup: [x, y] }: Block,
): readonly [rows: number, columns: number] {
  return [rows * (lanes > 1 ? 1 : y), 4 * vectors * x];
}

/** Steps of the inner dimension in the least pass: one load of A by all lanes, one piece of B's rows. */
export function leastDepth({ form, formats, lanes, rows }: Pick<Block, "form" | "formats" | "lanes" | "rows">): number {
  if (form === "tn") return 1;
  return Math.max(stepsOfA(formats, lanes, rows), form === "nt" ? piece(formats.b) : 1);
}

/** Whether registers, pieces and lanes of a block divide each other. */
export function isWhole({ form, formats, lanes, rows, vectors, depth }: Block): boolean {
  if (depth % leastDepth({ form, formats, lanes, rows }) !== 0) return false;
  if (vectors % vectorsOfB(form, formats) !== 0) return false;
  const pieces = form === "tn" ? rows / piece(formats.a) : rows;
  return Number.isInteger(pieces) && (pieces % lanes === 0 || lanes % pieces === 0);
}

function piece(format: Formats["a"]): number {
  return UNPACKING[format].weights;
}

/** Steps that one load of rows of A by all lanes covers. */
function stepsOfA({ a }: Formats, lanes: number, rows: number): number {
  return piece(a) * Math.max(1, lanes / rows);
}

/** vec4 columns that one piece of B gives. */
function vectorsOfB(form: Form, { b }: Formats): number {
  return form === "nt" ? 1 : piece(b) / 4;
}

/**
 * The shader of a block; `element` is what C is made of. Textures give 0 past their edges, so that whole passes may run
 * over the end of the inner dimension; from buffers, only tn takes its last steps one by one.
 */
export function blockShader(block: Block, element: Element, epilogue: Epilogue): string {
  const { form, formats, source, rows, vectors, depth, workgroup: [x, y], lanes } = block;
  const pieces = vectors / vectorsOfB(form, formats);
  const rest = source === "buffer" && form === "tn" && depth > 1;
  return `${pieceDeclarations(formats, source, element, epilogue)}
@compute @workgroup_size(${x}, ${y})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_id) local: vec3u${
    lanes > 1 ? ", @builtin(subgroup_invocation_id) lane: u32" : ""
  }) {
  let first_row = ${lanes > 1 ? `group.y * ${rows}u` : `(group.y * ${y}u + local.y) * ${rows}u`};
  let first_piece = group.x * ${x * pieces}u + ${lanes > 1 ? "lane" : "local.x"};
  ${form === "nt" ? "let b_row = first_piece * 4u;" : ""}
  ${range(rows).map((i) => range(vectors).map((j) => `var c${i}_${j} = vec4f();`).join(" ")).join("\n  ")}
  var k = group.z * sizes.k_part;
  let end = min(sizes.k, k + sizes.k_part);
  for (; ${rest ? `k + ${depth}u <= end` : "k < end"}; k += ${depth}u) {
    ${loopBody(block)}
  }
  ${rest ? `for (; k < end; k++) {\n    ${loopBody({ ...block, depth: 1 })}\n  }` : ""}
  ${range(rows).map((i) => storeRow(i, block)).join("\n  ")}
}`;
}

function loopBody(block: Block): string {
  const { form, rows, vectors, depth } = block;
  const lines = form === "nt" ? loadRowsOfB(block) : [];
  lines.push(...(form === "tn" ? loadColumnsOfA(block) : loadRowsOfA(block)));
  for (const q of range(depth)) {
    lines.push(...(form === "nt" ? turnedB(block, q) : loadVectorsOfB(block, q)));
    for (const i of range(rows)) {
      const value = form === "tn" ? columnValue(block, i, q) : rowValue(block, i, q);
      lines.push(
        `let a${q}_${i} = vec4f(${value}); ` +
          range(vectors).map((j) => `c${i}_${j} = fma(a${q}_${i}, b${q}_${j}, c${i}_${j});`).join(" "),
      );
    }
  }
  return lines.join("\n    ");
}

/** Registers `<name>_<v>`: the vectors of one piece. */
function loadUnpacked(name: string, format: Formats["a"], load: string): string {
  const { weights, unpack } = UNPACKING[format];
  if (weights === 4) return `let ${name}_0 = ${load};`;
  return `let ${name} = ${load}; ${range(weights / 4).map((v) => `let ${name}_${v} = ${unpack(name, v)};`).join(" ")}`;
}

/** Element `index` of a piece that `loadUnpacked` put into registers. */
function elementOf(name: string, format: Formats["a"], index: number): string {
  const { weights, place } = UNPACKING[format];
  const [v, e] = placeOf({ vectors: weights / 4, place }, index);
  return `${name}_${v}.${PARTS[e]}`;
}

/** Pieces `t<group>_<part>`: with fewer rows than lanes, the spare lanes load the following pieces of the same rows. */
function loadRowsOfA({ source, formats, lanes, rows, depth }: Block): string[] {
  const each = stepsOfA(formats, lanes, rows);
  const load = (group: number, part: number, x: string, y: string) =>
    loadUnpacked(`t${group}_${part}`, formats.a, loadPiece("a", source, formats.a, x, y));
  return range(depth / each).flatMap((group) => {
    const x = `k / ${piece(formats.a)}u + ${group * each / piece(formats.a)}u`;
    if (lanes === 1) return range(rows).map((i) => load(group, i, x, `first_row + ${i}u`));
    if (rows < lanes) return [load(group, 0, `${x} + lane / ${rows}u`, `first_row + lane % ${rows}u`)];
    return range(rows / lanes).map((part) => load(group, part, x, `first_row + ${part * lanes}u + lane`));
  });
}

function rowValue({ formats, lanes, rows }: Block, i: number, q: number): string {
  const each = stepsOfA(formats, lanes, rows);
  const size = piece(formats.a);
  const [group, within] = [Math.floor(q / each), q % each];
  const value = (part: number) => elementOf(`t${group}_${part}`, formats.a, within % size);
  if (lanes === 1) return value(i);
  if (rows < lanes) return `subgroupShuffle(${value(0)}, ${i + rows * Math.floor(within / size)}u)`;
  return `subgroupShuffle(${value(Math.floor(i / lanes))}, ${i % lanes}u)`;
}

/** How lanes share columns of A: `pieces` make one step's rows; where lanes are spare they load the following steps. */
function columnLoads({ formats, lanes, rows, depth }: Block): { pieces: number; steps: number } {
  const pieces = rows / piece(formats.a);
  return { pieces, steps: Math.min(depth, Math.max(1, lanes / pieces)) };
}

/** A stored (K, M): one piece holds several rows of the result. */
function loadColumnsOfA(block: Block): string[] {
  const { source, formats, lanes, depth } = block;
  const { pieces, steps } = columnLoads(block);
  const first = `first_row / ${piece(formats.a)}u`;
  return range(depth / steps).flatMap((group) =>
    range(Math.ceil(pieces / lanes)).map((part) => {
      const spare = pieces < lanes;
      const x = lanes === 1 ? `${part}u` : spare ? `lane % ${pieces}u` : `${part * lanes}u + lane`;
      const y = `k + ${group * steps}u${spare ? ` + lane / ${pieces}u` : ""}`;
      const load = loadPiece("a", source, formats.a, `${first} + ${x}`, y);
      return loadUnpacked(`t${group}_${part}`, formats.a, load);
    })
  );
}

function columnValue(block: Block, i: number, q: number): string {
  const { formats, lanes } = block;
  const { pieces, steps } = columnLoads(block);
  const at = Math.floor(i / piece(formats.a));
  const value = elementOf(`t${Math.floor(q / steps)}_${Math.floor(at / lanes)}`, formats.a, i % piece(formats.a));
  if (lanes === 1) return value;
  return `subgroupShuffle(${value}, ${at % lanes + pieces * (q % steps)}u)`;
}

/** Registers `b<q>_<j>`, in the order in which pieces unpack. */
function loadVectorsOfB({ form, source, formats, vectors, workgroup: [across] }: Block, q: number): string[] {
  const each = vectorsOfB(form, formats);
  const { unpack } = UNPACKING[formats.b];
  return range(vectors / each).map((p) => {
    const load = loadPiece("b", source, formats.b, `first_piece + ${p * across}u`, `k + ${q}u`);
    if (each === 1) return `let b${q}_${p} = ${load};`;
    return `let p${q}_${p} = ${load}; ` +
      range(each).map((v) => `let b${q}_${p * each + v} = ${unpack(`p${q}_${p}`, v)};`).join(" ");
  });
}

/** B stored (N, K): the four rows that make this invocation's four columns. */
function loadRowsOfB({ source, formats, vectors, depth, workgroup: [across] }: Block): string[] {
  const each = piece(formats.b);
  return range(depth / each).flatMap((group) =>
    range(vectors).flatMap((j) =>
      range(4).map((e) => {
        const load = loadPiece("b", source, formats.b, `k / ${each}u + ${group}u`, `b_row + ${4 * across * j + e}u`);
        return loadUnpacked(`r${group}_${j}_${e}`, formats.b, load);
      })
    )
  );
}

function turnedB({ formats, vectors }: Block, q: number): string[] {
  const each = piece(formats.b);
  return range(vectors).map((j) => {
    const parts = range(4).map((e) => elementOf(`r${Math.floor(q / each)}_${j}_${e}`, formats.b, q % each));
    return `let b${q}_${j} = vec4f(${parts.join(", ")});`;
  });
}

function storeRow(i: number, { form, formats, vectors, workgroup: [across] }: Block): string {
  const each = vectorsOfB(form, formats);
  return range(vectors).map((j) => {
    const piece = `first_piece + ${Math.floor(j / each) * across}u`;
    const sum = each === 1 ? `c${i}_${j}` : orderedVector(i, j, each, formats.b);
    return `store(group.z, first_row + ${i}u, (${piece}) * ${4 * each}u + ${4 * (j % each)}u, ${sum});`;
  }).join(" ");
}

/** Sums stand as B's pieces unpack; a row of C wants columns in order. */
function orderedVector(i: number, j: number, each: number, format: Formats["b"]): string {
  const from = j - j % each;
  const parts = range(4).map((e) => {
    const [v, part] = placeOf({ vectors: each, place: UNPACKING[format].place }, 4 * (j % each) + e);
    return `c${i}_${from + v}.${PARTS[part]}`;
  });
  return `vec4f(${parts.join(", ")})`;
}
