/**
 * What all attention kernels share: their bindings, the constants a shader opens with, and the dropout mask's text. It
 * knows no way of computing attention.
 */
import { f32 } from "./gpu/wgsl.ts";
import { type HeadsPlace, vectorIndex } from "./heads.ts";
import { philox, PHILOX_WGSL } from "./random.ts";

/** Where the heads of an operand lie, and those of its gradient. */
export interface OperandPlace extends HeadsPlace {
  /** Which of the backward pass's outputs its gradient lies in: operands of one tensor share one. */
  readonly gradient: number;
}

/** What an attention shader is specialised by. */
export interface AttentionShape {
  readonly heads: number;
  readonly keyHeads: number;
  /** Elements of a head; a multiple of 4. */
  readonly width: number;
  readonly scale: number;
  readonly dropout: { readonly rate: number; readonly site: number } | null;
  readonly q: OperandPlace;
  readonly k: OperandPlace;
  readonly v: OperandPlace;
}

/** One shader and its grid for a number of rows. */
export interface AttentionKernel {
  readonly wgsl: string;
  readonly workgroups: (rows: number) => readonly [number, number, number];
  /** Loop iterations of one invocation, no document having more than `longest` rows. For keys: with one head of a group. */
  readonly iterations: (longest: number) => number;
}

/**
 * Forward and backward in one manner. Bindings, in order:
 * forward: q, k, v, starts, [counter], o, lse;
 * queries (gradient of q): q, k, v, dy, statistics, [counter], the tensor dq lies in;
 * keys (gradients of k and v): q, k, v, dy, statistics, [counter], the tensors dk and dv lie in. Its text goes through
 * heads FIRST_HEAD to END_HEAD of the group, which it doesn't declare, and adds to dk and dv where the first isn't 0.
 */
export interface AttentionVariant {
  readonly name: string;
  readonly textures: boolean;
  readonly forward: AttentionKernel;
  readonly queries: AttentionKernel;
  readonly keys: AttentionKernel;
}

export type Pass = "forward" | "queries" | "keys";

const READS: Readonly<Record<Pass, readonly string[]>> = {
  forward: ["q", "k", "v", "starts"],
  queries: ["q", "k", "v", "dy", "statistics"],
  keys: ["q", "k", "v", "dy", "statistics"],
};

/** Operands whose gradients a pass makes. */
const GRADIENTS: Readonly<Record<Pass, readonly ("q" | "k" | "v")[]>> = {
  forward: [],
  queries: ["q"],
  keys: ["k", "v"],
};

const ELEMENTS: Readonly<Record<string, string>> = { starts: "u32", statistics: "vec4u", lse: "f32" };
const OPERANDS: readonly string[] = ["q", "k", "v", "dy"];

/** What a loop of `rounds`, each with `inner` iterations of other loops, adds to an invocation's iterations: leaving is one. */
export function iterationsOf(rounds: number, inner = 0): number {
  return rounds * (1 + inner) + 1;
}

/** The outputs of the backward pass, by number, that a pass writes to. */
export function gradientsOf(shape: AttentionShape, pass: Pass): readonly number[] {
  return [...new Set(GRADIENTS[pass].map((name) => shape[name].gradient))];
}

/**
 * Declarations of a pass. `q_at(vector, row)` and its like read operand vectors, VECTORS of them a head; `set_o(vector, row,
 * value)` and its like store results. `statistics` holds a vec4u a row and head: lse and delta as bits, the row's start, 0.
 */
export function declarations(shape: AttentionShape, pass: Pass, textures: boolean): string {
  const { heads, keyHeads, width, scale, dropout } = shape;
  const reads = [...READS[pass], ...(dropout ? ["counter"] : [])];
  const writes = pass === "forward" ? ["o", "lse"] : gradientsOf(shape, pass).map((gradient) => `d${gradient}`);
  const bindings = [...reads, ...writes].map((name, index) => {
    const prefix = `@group(0) @binding(${index}) var`;
    if (textures && OPERANDS.includes(name)) return `${prefix} ${name}: texture_storage_2d<rgba32float, read>;`;
    const access = index < reads.length ? "read" : "read_write";
    if (name === "counter") return `${prefix}<storage, read> counter: array<u32>;`;
    return `${prefix}<storage, ${access}> ${name}: array<${ELEMENTS[name] ?? "vec4f"}>;`;
  });
  return `struct Uniforms { rows: u32 }
${bindings.join("\n")}
@group(0) @binding(${bindings.length}) var<uniform> u: Uniforms;
const HEADS = ${heads}u;
const KEY_HEADS = ${keyHeads}u;
const GROUP = ${heads / keyHeads}u;
const VECTORS = ${width / 4}u;
const SCALE = ${f32(scale)};
const SCALE_LOG2 = ${f32(scale * Math.LOG2E)};
const MASKED = -1e30;
${accessors(shape, pass, textures).join("\n")}
${dropout ? dropoutText(dropout) : ""}`;
}

function accessors(shape: AttentionShape, pass: Pass, textures: boolean): string[] {
  const { q, k, v, heads, width } = shape;
  const own = { first: 0, heads, width, stride: heads * width };
  const places: Readonly<Record<string, HeadsPlace>> = { q, k, v, dy: own };
  const loads = READS[pass].filter((name) => OPERANDS.includes(name)).map((name) => {
    const at = vectorIndex(places[name], "row", "vector");
    const value = textures ? `textureLoad(${name}, vec2u(vector, row))` : `${name}[${at}]`;
    return `fn ${name}_at(vector: u32, row: u32) -> vec4f { return ${value}; }`;
  });
  const setter = (name: string, place: HeadsPlace, into: string, added: string) =>
    `fn set_${name}(vector: u32, row: u32, value: vec4f) {
  let at = ${vectorIndex(place, "row", "vector")};
  ${into}[at] = ${added}value;
}`;
  if (pass === "forward") return [...loads, setter("o", own, "o", "")];
  const stores = GRADIENTS[pass].map((name) => {
    const into = `d${shape[name].gradient}`;
    // Only keys' results are made by several dispatches.
    return setter(
      `d${name}`,
      shape[name],
      into,
      pass === "keys" ? `select(vec4f(), ${into}[at], FIRST_HEAD > 0u) + ` : "",
    );
  });
  return [...loads, ...stores];
}

/**
 * `kept4(row, key, head)`: bit e tells whether the probability of key + e survives for a row; rows and keys count within
 * the call. The generator's counter is (row, key / 4, head, site), rows and keys counted within the whole update, its key
 * (seed, update); word key % 4 decides. So masks depend on neither rank nor microbatch.
 */
function dropoutText({ rate, site }: { rate: number; site: number }): string {
  return `${PHILOX_WGSL}
const KEEP_SCALE = ${f32(1 / (1 - rate))};
fn kept_block(row: u32, block: u32, head: u32) -> u32 {
  let words = philox(vec4u(counter[2] + row, block, head, ${siteWord(site)}u), vec2u(counter[0], counter[1]));
  let kept = select(vec4u(), vec4u(1u, 2u, 4u, 8u), words >= vec4u(${dropThreshold(rate)}u));
  return kept.x | kept.y | kept.z | kept.w;
}
fn kept4(row: u32, key: u32, head: u32) -> u32 {
  let column = counter[2] + key;
  let shift = column & 3u;
  var bits = 0u;
  for (var part = 0u; part * 4u < shift + 4u; part++) {
    bits |= kept_block(row, column / 4u + part, head) << (part * 4u);
  }
  return (bits >> shift) & 15u;
}
fn keep_factor(row: u32, key: u32, head: u32) -> f32 {
  return select(0.0, KEEP_SCALE, (kept_block(row, (counter[2] + key) / 4u, head) & (1u << ((counter[2] + key) & 3u))) != 0u);
}`;
}

/** A word below this drops its element. */
function dropThreshold(rate: number): number {
  return Math.min(0xffff_ffff, Math.round(rate * 2 ** 32));
}

/** Attention's sites have the top bit, so that no other op's dropout shares their counters. */
function siteWord(site: number): number {
  return (site | 0x8000_0000) >>> 0;
}

/**
 * What a probability is multiplied by, 0 or 1 / (1 - rate), as the shaders decide it.
 *
 * @param counter seed, update, first row of the call within the update.
 */
export function keepFactor(
  { rate, site }: { rate: number; site: number },
  [seed, update, first]: ArrayLike<number> & Iterable<number>,
  row: number,
  key: number,
  head: number,
): number {
  const words = philox([first + row, Math.floor((first + key) / 4), head, siteWord(site)], [seed, update]);
  return words[(first + key) % 4] < dropThreshold(rate) ? 0 : 1 / (1 - rate);
}
