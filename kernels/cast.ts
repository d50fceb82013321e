/** Casts between f32 and packed halves, two a u32, rounded to nearest even. It knows no model and no loss scale. */
import source from "./cast.wgsl" with { type: "text" };
import {
  apply,
  byteLength,
  type Capabilities,
  count,
  type DType,
  formatType,
  type Op,
  type Tensor,
} from "./gpu/graph.ts";
import { read, write } from "./gpu/primitives.ts";
import { grid, GRID_WIDTH, wgsl } from "./gpu/wgsl.ts";

export const floatTypes = ["f32", "bf16", "f16"] as const;
/** Formats of numbers that weights and operands of products come in. */
export type FloatType = typeof floatTypes[number];

const WORKGROUP = 64;

/** What one invocation does: S reads of x become one write of y. */
const KERNEL = `
struct Uniforms { count: u32 }
@group(0) @binding(0) var<storage, read> x: array<X>;
@group(0) @binding(1) var<storage, read_write> y: array<Y>;
@group(0) @binding(2) var<uniform> u: Uniforms;
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let i = (group.x + group.y * GRID_WIDTH) * WORKGROUP + lane;
  if (i >= u.count) { return; }
  BODY
}`;

/** Shader text of one kind of cast; `words` are those of the packed side that an invocation makes or reads. */
interface Kind {
  readonly words: 1 | 2;
  readonly types: string;
  readonly body: string;
}

const PAIR = `
fn pack(a: u32, b: u32) -> u32 { return TO(a) | (TO(b) << 16u); }
fn unpack(word: u32) -> vec2u { return vec2u(FROM(word & 0xffffu), FROM(word >> 16u)); }`;

function packing(columns: number): Kind {
  if (columns % 4 === 0) {
    // Loaded whole: x[i].x and its like would be four loads.
    const body = "let four = x[i];\n  y[i] = vec2u(pack(four.x, four.y), pack(four.z, four.w));";
    return { words: 2, types: "alias X = vec4u; alias Y = vec2u;", body };
  }
  if (columns % 2 === 0) {
    return {
      words: 1,
      types: "alias X = vec2u; alias Y = u32;",
      body: "let two = x[i];\n  y[i] = pack(two.x, two.y);",
    };
  }
  const body = `let at = i / WORDS * COLUMNS + i % WORDS * 2u;
  y[i] = pack(x[at], select(0u, x[at + 1u], i % WORDS + 1u < WORDS));`;
  return { words: 1, types: "alias X = u32; alias Y = u32;", body };
}

function unpacking(columns: number): Kind {
  if (columns % 4 === 0) {
    const body = "let two = x[i];\n  y[i] = vec4u(unpack(two.x), unpack(two.y));";
    return { words: 2, types: "alias X = vec2u; alias Y = vec4u;", body };
  }
  if (columns % 2 === 0) return { words: 1, types: "alias X = u32; alias Y = vec2u;", body: "y[i] = unpack(x[i]);" };
  const body = `let at = i / WORDS * COLUMNS + i % WORDS * 2u;
  let pair = unpack(x[i]);
  y[at] = pair.x;
  if (i % WORDS + 1u < WORDS) { y[at + 1u] = pair.y; }`;
  return { words: 1, types: "alias X = u32; alias Y = u32;", body };
}

const repacking: Kind = {
  words: 1,
  types: "alias X = u32; alias Y = u32;",
  body: "let pair = unpack(x[i]);\n  y[i] = pack(pair.x, pair.y);",
};

interface Attrs {
  readonly dtype: FloatType;
  readonly into: boolean;
}

const castOp: Op<Attrs> = {
  name: "cast",
  infer([x, into], { dtype }) {
    if (!isFloat(x.dtype)) throw new RangeError(`Cannot cast ${formatType(x)} to ${dtype}: want f32, bf16 or f16`);
    const result = { shape: x.shape, dtype };
    if (into !== undefined && formatType(into) !== formatType(result)) {
      throw new RangeError(`Cannot cast ${formatType(x)} into ${formatType(into)}: want ${formatType(result)}`);
    }
    return [result];
  },
  kernels({ inputs: [x], outputs: [y], attrs: { dtype } }, device) {
    const packed = x.dtype === "f32" ? y : x;
    const columns = x.shape.at(-1) ?? 1;
    const kind = dtype === "f32" ? unpacking(columns) : x.dtype === "f32" ? packing(columns) : repacking;
    const text = `${kind.types}\n${source}\n${PAIR}\n${KERNEL.replace("BODY", () => kind.body)}`
      .replaceAll("TO(", dtype === "f32" ? "bf16_of(" : `${dtype}_of(`)
      .replaceAll("FROM(", x.dtype === "f32" ? "f32_of_bf16(" : `f32_of_${x.dtype}(`);
    const code = wgsl(text, { WORKGROUP, GRID_WIDTH, WORDS: Math.ceil(columns / 2), COLUMNS: columns });
    return [
      slices(x.shape, device).map((rows) => {
        const words = byteLength(packed) / 4 / rowCount(x.shape) * (rows[1] - rows[0]);
        const invocations = Math.ceil(words / kind.words);
        return {
          label: `cast ${x.dtype} to ${dtype}`,
          wgsl: code,
          workgroups: grid(Math.ceil(invocations / WORKGROUP)),
          bindings: [read(x, rows), write(y, rows)],
          uniforms: [invocations],
        };
      }),
    ];
  },
  cost: ({ inputs: [x], outputs: [y] }) => ({ flops: 4 * count(x), bytes: byteLength(x) + byteLength(y) }),
  vjp: ({ attrs }, [grad]) => attrs.into ? [grad, null] : [grad],
  inPlace: ({ attrs }): Record<number, number> => attrs.into ? { 0: 1 } : {},
};

/** Whether a format is one of numbers that products take. */
export function isFloat(dtype: DType): dtype is FloatType {
  return dtype === "f32" || dtype === "bf16" || dtype === "f16";
}

function rowCount(shape: readonly number[]): number {
  return shape[0] ?? 1;
}

/** Rows of the first dimension whose f32 fit a binding; both sides start at aligned offsets. */
function slices(shape: readonly number[], { limits }: Capabilities): (readonly [number, number])[] {
  const rows = rowCount(shape);
  const rowBytes = 4 * count({ shape, dtype: "f32" }) / rows;
  const packedBytes = shape.length > 1 ? byteLength({ shape, dtype: "bf16" }) / rows : 2;
  const limit = limits.maxStorageBufferBindingSize;
  const alignment = limits.minStorageBufferOffsetAlignment;
  if (rows * rowBytes <= limit) return [[0, rows]];
  let unit = 1;
  while ([rowBytes, packedBytes].some((bytes) => unit * bytes % alignment !== 0)) unit *= 2;
  const step = Math.floor(limit / (unit * rowBytes)) * unit;
  if (step === 0) throw new RangeError(`Cannot cast rows of ${rowBytes} bytes: the adapter binds ${limit}`);
  return Array.from({ length: Math.ceil(rows / step) }, (_, i) => [i * step, Math.min(rows, (i + 1) * step)]);
}

/**
 * x in another format, rounded to nearest even (ties to even); infinities and NaNs stay what they are, and what passes the
 * format's range becomes infinity. The gradient passes through as it is, in f32.
 *
 * @param x f32, bf16 or f16 of any shape; rows of the last dimension are padded to whole u32 with zero.
 * @param into memory of the result's type to write to.
 * @returns x itself where it has the format already.
 * @throws RangeError for other formats, or where `into` is of another type.
 */
export function cast(x: Tensor, dtype: FloatType, into?: Tensor): Tensor {
  if (x.dtype === dtype && into === undefined) return x;
  return apply(castOp, into === undefined ? [x] : [x, into], { dtype, into: into !== undefined })[0];
}
