/**
 * WGSL of the matmul kernels for GPUs: tiles of A and B go through workgroup memory, each invocation holds a block of C in
 * registers. Any sizes: what lies past an edge is loaded as 0 and not stored. It knows neither tensors nor sizes.
 */
import { range } from "./gpu/wgsl.ts";
import {
  elementDeclarations,
  type Epilogue,
  type Form,
  type Formats,
  loadPiece,
  pieceDeclarations,
} from "./matmul_shader.ts";
import { placeOf, UNPACKING } from "./unpacking.ts";

export interface Tile {
  readonly form: Form;
  readonly formats: Formats;
  /** Rows and columns of C that a workgroup makes. */
  readonly size: number;
  /** Rows and columns of C that an invocation holds: 4 or 8. */
  readonly registers: number;
  /** Steps of the inner dimension in workgroup memory at once. */
  readonly depth: number;
  /** Whether operands are loaded by pieces of 16 bytes, as rows of whole pieces allow, or by elements. */
  readonly pieces: boolean;
}

const PARTS = "xyzw";

/** Invocations along one side of the workgroup. */
export function tileThreads({ size, registers }: Tile): number {
  return size / registers;
}

/** Bytes of workgroup memory. */
export function tileBytes(tile: Tile): number {
  return 2 * 4 * tile.depth * pitch(tile);
}

/** Loop iterations of an invocation for one step of the inner dimension; leaving a loop is one too. */
export function tileIterations(tile: Tile): number {
  const loads = ["a", "b"].map((name) => Math.ceil(loadsOf(tile, name as "a" | "b") / tileThreads(tile) ** 2) + 1);
  return (1 + loads[0] + loads[1] + tile.depth + 1) / tile.depth;
}

/** One more than the tile, so that invocations storing along the inner dimension hit different banks. */
function pitch({ size }: Tile): number {
  return size + 1;
}

/** Elements that one load brings. */
function width({ pieces, formats }: Tile, name: "a" | "b"): number {
  return pieces ? UNPACKING[formats[name]].weights : 1;
}

function loadsOf(tile: Tile, name: "a" | "b"): number {
  return tile.size * tile.depth / width(tile, name);
}

/** Whether an operand's rows go along the inner dimension. */
function isAlong({ form }: Tile, name: "a" | "b"): boolean {
  return name === "a" ? form !== "tn" : form === "nt";
}

/** The shader of a tile. */
export function tileShader(tile: Tile, epilogue: Epilogue): string {
  const { formats, size, registers, depth, pieces } = tile;
  const threads = tileThreads(tile);
  const vectors = range(registers / 4);
  return `${pieces ? pieceDeclarations(formats, "buffer", "f32", epilogue) : elementDeclarations(formats, epilogue)}
var<workgroup> tile_a: array<f32, ${depth * pitch(tile)}>;
var<workgroup> tile_b: array<f32, ${depth * pitch(tile)}>;
@compute @workgroup_size(${threads}, ${threads})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_id) local: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let first_row = group.y * ${size}u;
  let first_column = group.x * ${size}u;
  ${range(registers).map((i) => vectors.map((j) => `var c${i}_${j} = vec4f();`).join(" ")).join("\n  ")}
  let start = group.z * sizes.k_part;
  let end = min(sizes.k, start + sizes.k_part);
  for (var first_k = start; first_k < end; first_k += ${depth}u) {
    ${loadTile(tile, "a", "first_row", "sizes.m")}
    ${loadTile(tile, "b", "first_column", "sizes.n")}
    workgroupBarrier();
    for (var k = 0u; k < ${depth}u; k++) {
      ${multiply(tile).join("\n      ")}
    }
    workgroupBarrier();
  }
  ${range(registers).map((i) => storeRow(tile, i)).join("\n  ")}
}`;
}

/** Neighbouring invocations load neighbouring addresses; an element lands at its step's row of the workgroup's tile. */
function loadTile(tile: Tile, name: "a" | "b", first: string, edge: string): string {
  const { size, depth, pieces } = tile;
  const along = isAlong(tile, name);
  const each = width(tile, name);
  const across = (along ? depth : size) / each;
  const [k, at] = along
    ? [`(i % ${across}u) * ${each}u`, `i / ${across}u`]
    : [`i / ${across}u`, `(i % ${across}u) * ${each}u`];
  const [row, column] = along ? [`${first} + at`, "first_k + k"] : ["first_k + k", `${first} + at`];
  const inside = `first_k + k < end && ${first} + at < ${edge}`;
  const threads = tileThreads(tile) ** 2;
  const put = (e: number, value: string) =>
    `tile_${name}[(k + ${along ? e : 0}u) * ${pitch(tile)}u + at + ${along ? 0 : e}u] = ${value};`;
  const element = `${name}_at((${row}) * sizes.${name}_stride + sizes.${name}_column + ${column})`;
  const body = pieces ? loadPieces(tile, name, row, column, inside, put) : `var value = 0.0;
      if (${inside}) { value = ${element}; }
      ${put(0, "value")}`;
  return `for (var i = lane; i < ${size * depth / each}u; i += ${threads}u) {
      let k = ${k};
      let at = ${at};
      ${body}
    }`;
}

function loadPieces(
  { form, formats }: Tile,
  name: "a" | "b",
  row: string,
  column: string,
  inside: string,
  put: (e: number, value: string) => string,
): string {
  const { element, weights, unpack, place } = UNPACKING[formats[name]];
  const load = loadPiece(name, "buffer", formats[name], `(${column}) / ${weights}u`, row);
  const along = name === "a" ? form !== "tn" : form === "nt";
  const values = range(weights).map((e) => {
    const [v, part] = placeOf({ vectors: weights / 4, place }, e);
    const value = `v${v}.${PARTS[part]}`;
    return put(e, along && e > 0 ? `select(0.0, ${value}, first_k + k + ${e}u < end)` : value);
  });
  return `var raw = ${element}();
      if (${inside}) { raw = ${load}; }
      ${range(weights / 4).map((v) => `let v${v} = ${unpack("raw", v)};`).join(" ")}
      ${values.join("\n      ")}`;
}

/** Columns of an invocation are a workgroup's side apart, so that neighbours store side by side. */
function multiply(tile: Tile): string[] {
  const { registers } = tile;
  const threads = tileThreads(tile);
  const vectors = range(registers / 4);
  return [
    `let at_a = k * ${pitch(tile)}u + local.y * ${registers}u;`,
    `let at_b = k * ${pitch(tile)}u + local.x;`,
    ...vectors.map((j) => {
      const parts = range(4).map((e) => `tile_b[at_b + ${(4 * j + e) * threads}u]`);
      return `let b${j} = vec4f(${parts.join(", ")});`;
    }),
    ...range(registers).map((i) =>
      `let a${i} = vec4f(tile_a[at_a + ${i}u]); ` +
      vectors.map((j) => `c${i}_${j} = fma(a${i}, b${j}, c${i}_${j});`).join(" ")
    ),
  ];
}

function storeRow(tile: Tile, i: number): string {
  const { registers } = tile;
  const threads = tileThreads(tile);
  return range(registers).map((column) => {
    const value = `c${i}_${column >> 2}.${PARTS[column & 3]}`;
    const at = `first_column + local.x + ${column * threads}u`;
    return `store_element(group.z, first_row + local.y * ${registers}u + ${i}u, ${at}, ${value});`;
  }).join(" ");
}
