/**
 * WGSL of the matmul kernels that hold a block of the result in registers and use no workgroup memory. It knows neither
 * tensors nor sizes: those are uniforms, so that one shader serves every shape.
 *
 * An invocation holds `rows` x `vectors` vec4 sums. With `lanes` > 1 the lanes of a subgroup load different parts of A
 * and pass them round by shuffles: on CPU drivers, where a load costs as much as a dozen multiply-adds, that is what
 * makes a matmul fast (LOG.md).
 */

import { range } from "./gpu/wgsl.ts";
import { declarations, type Epilogue, type Form, loadVector, type Source } from "./matmul_shader.ts";

export interface Block {
  readonly source: Source;
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

/** Steps of the inner dimension that one load of A by all lanes covers. */
export function groupDepth({ lanes, rows }: Block): number {
  return rows < lanes ? 4 * lanes / rows : 4;
}

/** The shader of a block; operands and result are bound as vec4 or textures. */
export function blockShader(form: Form, block: Block, epilogue: Epilogue): string {
  const { rows, vectors, depth, workgroup: [x, y], lanes } = block;
  const columns = form === "nt" ? "let b_row = first_vector * 4u;" : "";
  return `${declarations("vec4f", block.source, epilogue)}
@compute @workgroup_size(${x}, ${y})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_id) local: vec3u${
    lanes > 1 ? ", @builtin(subgroup_invocation_id) lane: u32" : ""
  }) {
  let first_row = ${lanes > 1 ? `group.y * ${rows}u` : `(group.y * ${y}u + local.y) * ${rows}u`};
  let first_vector = group.x * ${x * vectors}u + ${lanes > 1 ? "lane" : "local.x"};
  ${columns}
  ${range(rows).map((i) => range(vectors).map((j) => `var c${i}_${j} = vec4f();`).join(" ")).join("\n  ")}
  var k = 0u;
  for (; k + ${depth}u <= sizes.k; k += ${depth}u) {
    ${loopBody(form, block, depth)}
  }
  ${form === "tn" && depth > 1 ? `for (; k < sizes.k; k++) {\n    ${loopBody(form, block, 1)}\n  }` : ""}
  ${range(rows).map((i) => storeRow(i, block, epilogue)).join("\n  ")}
}`;
}

function loopBody(form: Form, block: Block, depth: number): string {
  const { rows, vectors } = block;
  const lines: string[] = [];
  if (form === "nt") lines.push(...loadRowsOfB(block, depth));
  if (form !== "tn") lines.push(...loadRowsOfA(block, depth));
  for (const q of range(depth)) {
    if (form === "tn") lines.push(...loadColumnsOfA(block, q));
    lines.push(...range(vectors).map((j) => `let b${q}_${j} = ${vectorOfB(form, block, q, j)};`));
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

/** Registers `t<group>_<part>`: with fewer rows than lanes, the spare lanes load the following texels of the same rows. */
function loadRowsOfA(block: Block, depth: number): string[] {
  const { lanes, rows, source } = block;
  const each = groupDepth(block);
  return range(depth / each).flatMap((group) => {
    const texel = `k / 4u + ${group * each / 4}u`;
    if (lanes === 1) {
      return range(rows).map((i) => `let t${group}_${i} = ${loadVector("a", source, texel, `first_row + ${i}u`)};`);
    }
    if (rows < lanes) {
      return [
        `let t${group}_0 = ${loadVector("a", source, `${texel} + lane / ${rows}u`, `first_row + lane % ${rows}u`)};`,
      ];
    }
    return range(rows / lanes).map((part) =>
      `let t${group}_${part} = ${loadVector("a", source, texel, `first_row + ${part * lanes}u + lane`)};`
    );
  });
}

function rowValue(block: Block, i: number, q: number): string {
  const { lanes, rows } = block;
  const each = groupDepth(block);
  const group = Math.floor(q / each);
  const part = PARTS[q % 4];
  if (lanes === 1) return `t${group}_${i}.${part}`;
  if (rows < lanes) return `subgroupShuffle(t${group}_0.${part}, ${i + rows * Math.floor(q % each / 4)}u)`;
  return `subgroupShuffle(t${group}_${Math.floor(i / lanes)}.${part}, ${i % lanes}u)`;
}

/** A stored (K, M): one vec4 holds four rows of the result. */
function loadColumnsOfA({ lanes, rows, source }: Block, q: number): string[] {
  const vectors = Math.ceil(rows / 4 / lanes);
  const lane = lanes > 1 ? " + lane" : "";
  return range(vectors).map((part) =>
    `let t${q}_${part} = ${loadVector("a", source, `first_row / 4u + ${part * lanes}u${lane}`, `k + ${q}u`)};`
  );
}

function columnValue({ lanes }: Block, i: number, q: number): string {
  const vector = i >> 2;
  const value = `t${q}_${Math.floor(vector / lanes)}.${PARTS[i & 3]}`;
  return lanes > 1 ? `subgroupShuffle(${value}, ${vector % lanes}u)` : value;
}

/** B stored (N, K): the four rows that make this invocation's four columns. */
function loadRowsOfB({ source, vectors, workgroup: [across] }: Block, depth: number): string[] {
  return range(depth / 4).flatMap((group) =>
    range(vectors).flatMap((j) =>
      range(4).map((e) =>
        `let r${group}_${j}_${e} = ${loadVector("b", source, `k / 4u + ${group}u`, `b_row + ${4 * across * j + e}u`)};`
      )
    )
  );
}

function vectorOfB(form: Form, { source, workgroup: [across] }: Block, q: number, j: number): string {
  if (form !== "nt") return loadVector("b", source, `first_vector + ${j * across}u`, `k + ${q}u`);
  return `vec4f(${range(4).map((e) => `r${q >> 2}_${j}_${e}.${PARTS[q & 3]}`).join(", ")})`;
}

function storeRow(i: number, { vectors, workgroup: [across] }: Block, { bias, accumulate }: Epilogue): string {
  const stores = range(vectors).map((j) => {
    const vector = `first_vector + ${j * across}u`;
    const added = bias ? ` + bias[sizes.c_column / 4u + ${vector}]` : "";
    const place = `c[((first_row + ${i}u) * sizes.c_stride + sizes.c_column) / 4u + ${vector}]`;
    return `if ((${vector}) * 4u < sizes.n) { ${place} = ${accumulate ? `${place} + ` : ""}c${i}_${j}${added}; }`;
  });
  return `if (first_row + ${i}u < sizes.m) { ${stores.join(" ")} }`;
}
