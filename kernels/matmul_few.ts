/**
 * WGSL of matmul nt with few rows of A, as in decoding: the lanes of a subgroup go along the inner dimension, so that each
 * row of B streams through once, and add up at the end. It knows neither tensors nor sizes.
 */
import { range } from "./gpu/wgsl.ts";
import { declarations, type Epilogue, loadPiece, type Source, storeElement } from "./matmul_shader.ts";

export interface Few {
  readonly source: Source;
  readonly lanes: number;
  /** Rows of A, all in registers. */
  readonly rows: number;
  /** Rows of B, the columns of the result, one workgroup makes; no more than lanes. */
  readonly columns: number;
}

/** Operands are read as vec4, the result is stored by elements, so its buffer holds f32. */
export function fewShader({ source, lanes, rows, columns }: Few, epilogue: Epilogue): string {
  const sums = range(rows).flatMap((m) => range(columns).map((i) => `var c${m}_${i} = vec4f();`));
  const body = [
    ...range(rows).map((m) => `let a${m} = ${loadPiece("a", source, "f32", "t", `first_row + ${m}u`)};`),
    ...range(columns).map((i) =>
      `let b${i} = ${loadPiece("b", source, "f32", "t", `first_column + ${i}u`)}; ` +
      range(rows).map((m) => `c${m}_${i} = fma(a${m}, b${i}, c${m}_${i});`).join(" ")
    ),
  ];
  return `${
    declarations({ a: "f32", b: "f32" }, source, epilogue).replaceAll(/(c|bias): array<vec4f>/g, "$1: array<f32>")
  }
fn lane_sum(x: vec4f) -> f32 {
  var sum = x.x + x.y + x.z + x.w;
  ${range(Math.log2(lanes)).map((bit) => `sum += subgroupShuffleXor(sum, ${1 << bit}u);`).join(" ")}
  return sum;
}
@compute @workgroup_size(${lanes})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(subgroup_invocation_id) lane: u32) {
  let first_column = group.x * ${columns}u;
  let first_row = group.y * ${rows}u;
  ${sums.join(" ")}
  for (var t = lane; t < sizes.k / 4u; t += ${lanes}u) {
    ${body.join("\n    ")}
  }
  ${range(rows).map((m) => finishRow(m, columns, epilogue)).join("\n  ")}
}`;
}

/** Lane i stores column i. */
function finishRow(m: number, columns: number, epilogue: Epilogue): string {
  const sums = range(columns).map((i) => `sum${m} = select(sum${m}, lane_sum(c${m}_${i}), lane == ${i}u);`);
  const inside = `first_row + ${m}u < sizes.m && lane < ${columns}u && first_column + lane < sizes.n`;
  const store = storeElement(`first_row + ${m}u`, "first_column + lane", `sum${m}`, epilogue);
  return `var sum${m} = 0.0; ${sums.join(" ")}\n  if (${inside}) { ${store} }`;
}
