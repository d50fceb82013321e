/**
 * Attention over a key-value cache in blocks (Kwon et al. 2023): rows of any sequences, prefill and decode mixed, attend to
 * what their sequence has cached. It knows neither who owns a block nor a model.
 */
import { iterationsOf } from "./attention_shared.ts";
import { examplePages } from "./examples.ts";
import {
  apply,
  byteLength,
  type Call,
  type Capabilities,
  count,
  type Dispatch,
  formatType,
  type Op,
  scratch,
  type Tensor,
  type TensorType,
} from "./gpu/graph.ts";
import { read, write } from "./gpu/primitives.ts";
import { grid, GRID_WIDTH, wgsl } from "./gpu/wgsl.ts";
import combineSource from "./paged_combine.wgsl" with { type: "text" };
import plainSource from "./paged_plain.wgsl" with { type: "text" };
import { type Heads, headsOf, type HeadsPlace, placeOf, vectorIndex } from "./heads.ts";
import { pagedIterations, pagedShader, type PagedShape, type PagedTile } from "./paged_shader.ts";
import writeSource from "./paged_write.wgsl" with { type: "text" };

export interface PagedAttentionOptions {
  /** Factor of the scores, usually 1 / √D. */
  readonly scale: number;
  /** Positions of a block. */
  readonly blockSize: number;
}

/** The slot of a row that is not to be cached. */
export const NO_SLOT = 0xffff_ffff;

/** Workgroups that keep an adapter busy; positions are split until there are so many. */
const BUSY = 512;
const SHORTEST_SPLIT = 64;

/**
 * Row n of x (N, KVH, D), or of heads within wider rows, goes to row slots[n] of the cache (slots, KVH, D), in place; NO_SLOT writes nothing. slots is
 * (N) u32, without repeats. Returns the cache as it then is.
 *
 * @throws RangeError for other shapes.
 */
export function writeKeyValue(cache: Tensor, x: Tensor | Heads, slots: Tensor): Tensor {
  const heads = headsOf(x);
  return apply(writeOp, [cache, heads.tensor, slots], placeOf(heads))[0];
}

/**
 * Row n of q (N, H, D), or of heads within wider rows, attends to positions 0 to positions[n] of sequence sequences[n], both (N) u32. Position p of
 * sequence s is slot blockTable[s, p / blockSize] · blockSize + p % blockSize of keys and values (slots, KVH, D);
 * blockTable is (S, B) u32. H is a multiple of KVH, D a multiple of 4 up to 128. It has no gradient. Rows that only pad a
 * batch want a valid sequence and position 0. Fastest where rows of one sequence stand together.
 *
 * @returns (N, H, D).
 * @throws RangeError for other shapes. Compiling it throws RangeError for caches larger than the adapter binds, and for
 * sequences too long for the loops of a CPU driver: some 90,000 positions.
 */
export function pagedAttention(
  q: Tensor | Heads,
  keys: Tensor,
  values: Tensor,
  blockTable: Tensor,
  sequences: Tensor,
  positions: Tensor,
  options: PagedAttentionOptions,
): Tensor {
  const queries = headsOf(q);
  const inputs = [queries.tensor, keys, values, blockTable, sequences, positions];
  return apply(pagedOp, inputs, { ...options, queries: placeOf(queries) })[0];
}

const writeOp: Op<HeadsPlace> = {
  name: "write_key_value",
  infer(inputs, { heads, width }) {
    const [cache, x, slots] = inputs;
    const right = cache.dtype === "f32" && x.dtype === "f32" && cache.shape.slice(1).join() === `${heads},${width}` &&
      heads * width % 4 === 0 && slots.shape.join() === `${x.shape[0]}` && slots.dtype === "u32";
    if (!right) {
      const types = inputs.map(formatType).join(", ");
      throw new RangeError(`Cannot apply write_key_value to ${types}: ${heads} heads of ${width}`);
    }
    return [cache];
  },
  kernels({ inputs: [cache, x, slots], outputs: [written], attrs: place }, { limits }) {
    refuseLarge(cache, limits.maxStorageBufferBindingSize);
    const ROW_VECTORS = place.heads * place.width / 4;
    const vectors = x.shape[0] * ROW_VECTORS;
    const source = writeSource.replace("SOURCE", vectorIndex(place, "row", "index % ROW_VECTORS"));
    return [[{
      label: "write key value",
      wgsl: wgsl(source, { ROW_VECTORS, GRID_WIDTH }),
      workgroups: grid(Math.ceil(vectors / 64)),
      bindings: [write(written), read(x), read(slots)],
      uniforms: [vectors, cache.shape[0]],
    }]];
  },
  cost: ({ inputs: [, x], attrs: { heads, width } }) => ({ flops: 0, bytes: 8 * x.shape[0] * heads * width }),
  inPlace: () => ({ 0: 0 }),
};

interface Attributes extends PagedAttentionOptions {
  readonly queries: HeadsPlace;
}

const pagedOp: Op<Attributes> = {
  name: "paged_attention",
  infer(inputs, { blockSize, queries: { heads, width } }) {
    const [q, keys, values, blockTable, sequences, positions] = inputs;
    const refuse = (why: string) => {
      throw new RangeError(`Cannot apply paged_attention to ${inputs.map(formatType).join(", ")}: ${why}`);
    };
    if ([keys, values].some(({ shape }) => shape.length !== 3) || inputs.slice(0, 3).some((x) => x.dtype !== "f32")) {
      refuse("keys and values have three dimensions, all are f32");
    }
    const [rows] = q.shape;
    if (keys.shape.join() !== values.shape.join() || keys.shape[2] !== width) {
      refuse("keys, values and q agree in width");
    }
    if (heads % keys.shape[1] !== 0) refuse("query heads are a multiple of key heads");
    if (width % 4 !== 0 || width < 4 || width > 128) refuse("the head width is a multiple of 4 up to 128");
    if (blockTable.shape.length !== 2 || blockTable.dtype !== "u32") {
      refuse("the block table is (sequences, blocks) u32");
    }
    if ([sequences, positions].some(({ shape, dtype }) => shape.join() !== `${rows}` || dtype !== "u32")) {
      refuse("sequences and positions are (rows) u32");
    }
    if (!Number.isInteger(blockSize) || blockSize < 1) refuse(`a block has 1 or more positions, not ${blockSize}`);
    return [{ shape: [rows, heads, width], dtype: "f32" }];
  },
  kernels(call, device) {
    for (const cache of call.inputs.slice(1, 3)) refuseLarge(cache, device.limits.maxStorageBufferBindingSize);
    const whole = tiled(call, device, false);
    const split = tiled(call, device, true);
    const made = [...(device.cpu ? [whole, split] : [split, whole]), plain(call, device)];
    const offered = made.filter((candidate) => candidate !== null);
    if (offered.length > 0) return offered;
    throw new RangeError(
      `Cannot attend to ${positionsOf(call)} positions: this adapter's loops end after ${device.loopIterations} ` +
        "iterations; use fewer blocks a sequence",
    );
  },
  cost(call) {
    const [, keys, values] = call.inputs;
    const [o] = call.outputs;
    const flops = 4 * count(o) * positionsOf(call);
    return { flops, bytes: 2 * byteLength(o) + byteLength(keys) + byteLength(values) };
  },
  examples({ inputs: [q, keys, , table], attrs: { blockSize } }) {
    const [sequences, blocks] = table.shape;
    const pages = examplePages(q.shape[0], sequences, blocks, blockSize, Math.floor(keys.shape[0] / blockSize));
    return { 3: pages.blockTable, 4: pages.sequences, 5: pages.positions };
  },
};

/** Positions a sequence may have. */
function positionsOf({ inputs, attrs }: Call<Attributes>): number {
  return inputs[3].shape[1] * attrs.blockSize;
}

function tileOf({ heads, keyHeads, width }: PagedShape, rows: number, cpu: boolean, split: boolean): PagedTile {
  // A CPU driver wins by each load that serves more queries; on a GPU their registers would spill.
  const held = width > 64 ? (cpu ? 2 : 1) : width > 32 && !cpu ? 2 : 4;
  const heldHeads = [4, 3, 2, 1].find((count) => count <= held && heads / keyHeads % count === 0)!;
  return { lanes: cpu ? 8 : 32, rows: rows < held ? 1 : Math.floor(held / heldHeads), heads: heldHeads, split };
}

/** Null for a split that would be none, and where the adapter's loops would end early. */
function tiled(call: Call<Attributes>, device: Capabilities, split: boolean): Dispatch[] | null {
  const shape = pagedShape(call);
  const { inputs: [, , , blockTable], outputs: [o] } = call;
  const [rows, heads, width] = o.shape;
  const positions = positionsOf(call);
  const tile = tileOf(shape, rows, device.cpu, split);
  const [x, y] = [heads / tile.heads, Math.ceil(rows / tile.rows)];
  const length = split ? Math.max(SHORTEST_SPLIT, Math.ceil(positions * x * y / BUSY)) : positions;
  const splits = Math.ceil(positions / length);
  if (split && splits === 1 || pagedIterations(shape, tile, length) > device.loopIterations) return null;
  const parts = scratch([rows, heads, splits, width]);
  const weights = scratch([rows, heads, splits, 2]);
  const main: Dispatch = {
    label: `paged attention (${tile.rows} rows, ${tile.heads} heads${split ? `, ${splits} splits` : ""})`,
    wgsl: pagedShader(shape, tile),
    workgroups: [x, y, splits],
    bindings: [...call.inputs.map((x) => read(x)), ...(split ? [parts, weights] : [o]).map((y) => write(y))],
    uniforms: [rows, blockTable.shape[1], splits, length],
  };
  if (!split) return [main];
  return [main, {
    label: "paged attention combine",
    wgsl: wgsl(combineSource, { HEADS: heads, VECTORS: width / 4, GRID_WIDTH }),
    workgroups: grid(Math.ceil(count(o) / 4 / 64)),
    bindings: [read(parts), read(weights), write(o)],
    uniforms: [rows, splits],
  }];
}

function plain(call: Call<Attributes>, device: Capabilities): Dispatch[] | null {
  const { heads, keyHeads, width, scale, blockSize } = pagedShape(call);
  const vectors = iterationsOf(width / 4);
  if (iterationsOf(positionsOf(call), 2 * vectors) + vectors > device.loopIterations) return null;
  const rows = call.inputs[0].shape[0];
  const constants = {
    HEADS: heads,
    KEY_HEADS: keyHeads,
    GROUP: heads / keyHeads,
    VECTORS: width / 4,
    BLOCK: blockSize,
    SCALE_LOG2: { f32: scale * Math.LOG2E },
    GRID_WIDTH,
  };
  return [{
    label: "paged attention (plain)",
    wgsl: wgsl(
      plainSource.replace("QUERY", vectorIndex(call.attrs.queries, "row", "index % HEADS * VECTORS + d")),
      constants,
    ),
    workgroups: grid(Math.ceil(rows * heads / 32)),
    bindings: [...call.inputs.map((x) => read(x)), write(call.outputs[0])],
    uniforms: [rows, call.inputs[3].shape[1]],
  }];
}

function pagedShape({ inputs: [, keys], attrs }: Call<Attributes>): PagedShape {
  return { heads: attrs.queries.heads, keyHeads: keys.shape[1], width: keys.shape[2], ...attrs };
}

function refuseLarge(cache: TensorType, limit: number): void {
  if (byteLength(cache) <= limit) return;
  throw new RangeError(
    `Cannot bind a key-value cache ${formatType(cache)} of ${
      byteLength(cache)
    } bytes: the adapter binds ${limit}; use fewer slots`,
  );
}
