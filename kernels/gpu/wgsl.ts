/** Shader text: a constants preamble before a .wgsl file, and small helpers for grids. It knows no device. */

/** Values a shader is specialised by. Never a number that changes from step to step. */
export type Constants = Readonly<Record<string, number | boolean | { readonly f32: number }>>;

/**
 * `const NAME = value;` lines before `source`. Integers become u32, booleans bool; wrap a float as `{ f32: x }`.
 *
 * @throws RangeError for a number that is no u32 and not marked as f32.
 */
export function wgsl(source: string, constants: Constants = {}): string {
  const lines = Object.entries(constants).map(([name, value]) => `const ${name} = ${literal(name, value)};`);
  return [...lines, source].join("\n");
}

function literal(name: string, value: Constants[string]): string {
  if (typeof value === "boolean") return String(value);
  if (typeof value === "object") return f32(value.f32);
  if (!Number.isInteger(value) || value < 0 || value > 0xffff_ffff) {
    throw new RangeError(`Cannot write constant ${name} = ${value} as u32: wrap a float as { f32: x }`);
  }
  return `${value}u`;
}

/** An f32 literal that round-trips. */
export function f32(value: number): string {
  if (!Number.isFinite(value)) throw new RangeError(`Cannot write ${value} in WGSL: it has no literal`);
  return `f32(${Math.fround(value)})`;
}

/** Workgroups for `groups` in a row, folded into two dimensions; the shader's index is `id.x + id.y * GRID_WIDTH`. */
export function grid(groups: number): readonly [number, number, number] {
  if (groups <= GRID_WIDTH) return [Math.max(1, groups), 1, 1];
  return [GRID_WIDTH, Math.ceil(groups / GRID_WIDTH), 1];
}

/** Workgroups of a folded grid's first dimension: below every adapter's limit of 65,535. */
export const GRID_WIDTH = 32768;

/** 0 … size - 1, to write unrolled lines by. */
export function range(size: number): number[] {
  return Array.from({ length: size }, (_, index) => index);
}
