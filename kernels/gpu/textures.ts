/**
 * Which textures a program's dispatches read, and when they are filled. Pure: it knows bindings and where values lie, no
 * GPU. A texture of a value lives as long as the value is read and is then another's of the same shape; a texture of a
 * variable that the program doesn't write may be kept from run to run instead, by the store.
 */
import { type Binding, byteLength, type Dispatch, type DType, isLeaf, type Scratch, type Tensor } from "./graph.ts";
import type { Layout } from "./layout.ts";
import type { Plan } from "./plan.ts";

/** What decides a texture's memory: programs share textures of one shape among their dispatches. */
export interface TextureShape {
  readonly format: "rgba32float" | "rgba32uint";
  readonly width: number;
  readonly height: number;
}

/** Bytes of a texture: both formats have texels of 16. */
export function textureBytes({ width, height }: Pick<TextureShape, "width" | "height">): number {
  return width * height * 16;
}

/** Part of a store's buffer as a texture shows it. */
export interface VariableView {
  readonly shape: TextureShape;
  readonly buffer: number;
  readonly offset: number;
  readonly rowBytes: number;
}

/** The texture of a binding: one of the program's own, filled first where `copy` says so, or one the store keeps. */
export type TextureUse = { readonly texture: number; readonly copy: boolean } | { readonly kept: VariableView };

export interface TexturePlan {
  /** The program's own textures. */
  readonly shapes: readonly TextureShape[];
  readonly uses: ReadonlyMap<Binding, TextureUse>;
}

/** What a program does to memory, in order: a dispatch, or a copy to a value. */
export type Event = Dispatch | { readonly copied: Tensor };

/** Bytes that a value lies in. The owner is a slot, an input or a buffer of the store. */
export interface Region {
  readonly owner: string;
  readonly from: number;
  readonly to: number;
}

/** Where values lie under a plan and a layout. */
export function regions({ place }: Plan, layout: Layout): (tensor: Tensor | Scratch) => Region {
  return (tensor) => {
    const at = place(tensor);
    if ("slot" in at) return { owner: `slot ${at.slot}`, from: 0, to: byteLength(tensor) };
    const leaf = at.leaf.source;
    if (isLeaf(leaf) && leaf.kind === "variable") {
      const { buffer, offset, size } = layout.get(leaf.name)!;
      return { owner: `store ${buffer}`, from: offset, to: offset + size };
    }
    return { owner: `input ${isLeaf(leaf) ? leaf.name : ""}`, from: 0, to: byteLength(tensor) };
  };
}

/** Buffers of the store that dispatches or copies write to. */
export function writtenBuffers(events: readonly Event[], regionOf: (tensor: Tensor | Scratch) => Region): Set<number> {
  const owners = events.flatMap(writes).map((tensor) => regionOf(tensor).owner);
  return new Set(owners.filter((owner) => owner.startsWith("store ")).map((owner) => Number(owner.slice(6))));
}

/** Size in texels of the texture a binding asks for. */
export function textureShape(binding: Binding): TextureShape | null {
  const view = viewOf(binding);
  return view === null ? null : view.shape;
}

/** Where a texture's rows start in its tensor, how far apart they are, and its size. */
export function viewOf({ as, tensor }: Binding): Omit<VariableView, "buffer"> | null {
  if (as === undefined || as === "buffer") return null;
  const { rowLength } = as;
  const rowBytes = bytesOf(rowLength, tensor.dtype);
  const [row, endRow] = as.rows ?? [0, byteLength(tensor) / rowBytes];
  const [column, endColumn] = as.columns ?? [0, rowLength];
  const width = bytesOf(endColumn - column, tensor.dtype) / 16;
  if (rowBytes % 256 !== 0 || !Number.isInteger(width) || !Number.isInteger(endRow)) {
    throw new RangeError(
      `Cannot make a texture of ${rowLength} ${tensor.dtype} a row, columns ${column} to ${endColumn}: ` +
        `rows have ${rowBytes} bytes and ${width} texels, wanted a multiple of 256 bytes and whole texels`,
    );
  }
  const shape = { format: as.texture, width, height: endRow - row };
  return { shape, offset: row * rowBytes + bytesOf(column, tensor.dtype), rowBytes };
}

function bytesOf(elements: number, dtype: DType): number {
  return byteLength({ shape: [elements], dtype });
}

function writes(event: Event): (Tensor | Scratch)[] {
  if ("copied" in event) return [event.copied];
  return event.bindings.filter(({ access }) => access === "read_write").map(({ tensor }) => tensor);
}

/** A texture while it is planned: what it shows, and the last event that reads it. */
interface Held {
  readonly shape: TextureShape;
  holds: string;
  source: Region;
  usedAt: number;
}

/**
 * Assigns textures to the texture bindings of dispatches in their order. A texture that already shows the same part of a
 * value, not written since, is read again without a copy. With `keep`, textures of variables that no event writes are the
 * store's.
 */
export function planTextures(
  events: readonly Event[],
  regionOf: (tensor: Tensor | Scratch) => Region,
  keep = false,
): TexturePlan {
  const textures: Held[] = [];
  const uses = new Map<Binding, TextureUse>();
  const written = writtenBuffers(events, regionOf);
  events.forEach((event, now) => {
    for (const binding of "copied" in event ? [] : event.bindings) {
      const view = viewOf(binding);
      if (view === null) continue;
      const source = regionOf(binding.tensor);
      const buffer = source.owner.startsWith("store ") ? Number(source.owner.slice(6)) : null;
      if (keep && buffer !== null && !written.has(buffer)) {
        uses.set(binding, { kept: { ...view, buffer, offset: source.from + view.offset } });
        continue;
      }
      const holds = JSON.stringify([source, view]);
      const known = textures.findIndex((texture) => texture.holds === holds);
      const index = known >= 0 ? known : freeTexture(textures, view.shape, now);
      textures[index] = { shape: view.shape, holds, source, usedAt: now };
      uses.set(binding, { texture: index, copy: known < 0 });
    }
    for (const region of writes(event).map(regionOf)) {
      for (const texture of textures) if (overlap(texture.source, region)) texture.holds = "";
    }
  });
  return { shapes: textures.map(({ shape }) => shape), uses };
}

/** The texture of a shape that was read longest ago, or a new one. */
function freeTexture(textures: readonly Held[], shape: TextureShape, now: number): number {
  const free = textures.map((texture, index) => ({ texture, index })).filter(({ texture }) =>
    texture.shape.format === shape.format && texture.shape.width === shape.width &&
    texture.shape.height === shape.height && texture.usedAt < now
  );
  return free.sort((a, b) => a.texture.usedAt - b.texture.usedAt)[0]?.index ?? textures.length;
}

function overlap(a: Region, b: Region): boolean {
  return a.owner === b.owner && a.from < b.to && b.from < a.to;
}
