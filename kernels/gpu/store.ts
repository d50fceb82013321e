/**
 * The store: named memory that outlives a program (parameters, gradients, moments, KV blocks). Programs share it by name;
 * every kernel but the optimizer's binds its slice of a few large buffers. Textures that programs keep of its variables
 * belong to it too. It knows no op.
 */
import type { BufferSlice, Device } from "./device.ts";
import type { TensorType } from "./graph.ts";
import { type Entry, Layout, type Location, type Range } from "./layout.ts";
import type { VariableView } from "./textures.ts";

export type { Entry, Range } from "./layout.ts";

/** A texture of part of a variable; it is filled again where the variable was written since. */
export interface KeptTexture {
  readonly texture: GPUTexture;
  readonly view: VariableView;
  /** Version of the variable's buffer that the texture shows; -1 where it was never filled. */
  filled: number;
}

/** An empty store; disposing of it frees all of its variables. */
export function createStore(device: Device): Store {
  return new Store(device);
}

/** Variables by name; made by `createStore`. */
export class Store implements Disposable {
  #layout: Layout;
  readonly #buffers: GPUBuffer[] = [];
  /** How often each buffer was written. */
  readonly #versions: number[] = [];
  readonly #kept = new Map<string, KeptTexture>();

  constructor(readonly device: Device) {
    this.#layout = new Layout(device.capabilities.limits);
  }

  get layout(): Layout {
    return this.#layout;
  }

  /**
   * Makes zeroed variables of a kind. Kinds with the same entries (by shape and order) have the same ranges.
   *
   * @throws RangeError for a name that is taken or a variable larger than a buffer.
   */
  allocate(kind: string, entries: readonly Entry[]): void {
    this.#layout.allocate(kind, entries);
    for (const { label, bytes } of this.#layout.buffers.slice(this.#buffers.length)) {
      this.#buffers.push(this.device.createBuffer(bytes, label));
      this.#versions.push(0);
    }
  }

  /** The flat arrays that cover all variables of a kind, padding between them included (it is zero and stays zero). */
  ranges(kind: string): readonly Range[] {
    return this.#layout.ranges(kind);
  }

  get(name: string): (BufferSlice & TensorType) | undefined {
    const location = this.#layout.get(name);
    return location && { ...location, buffer: this.#buffers[location.buffer] };
  }

  /** Bytes of the textures that programs keep of variables. */
  get keptBytes(): number {
    return [...this.#kept.values()].reduce((sum, { texture }) => sum + texture.width * texture.height * 16, 0);
  }

  /** The texture of part of a variable; programs that ask for the same part share it. */
  keep(view: VariableView): KeptTexture {
    const { buffer, offset, rowBytes, shape } = view;
    const key = [buffer, offset, rowBytes, shape.format, shape.width, shape.height].join();
    const known = this.#kept.get(key);
    if (known !== undefined) return known;
    const texture = this.device.createTexture(shape.width, shape.height, shape.format);
    const kept = { texture, view, filled: -1 };
    this.#kept.set(key, kept);
    return kept;
  }

  /** Where a kept texture is to be copied from, if the variable was written since it was filled; it then counts as filled. */
  refill(kept: KeptTexture): BufferSlice | null {
    const { buffer, offset, rowBytes, shape } = kept.view;
    if (kept.filled === this.#versions[buffer]) return null;
    kept.filled = this.#versions[buffer];
    return { buffer: this.#buffers[buffer], offset, size: rowBytes * shape.height };
  }

  /** Notes that a program writes to a buffer. */
  wrote(buffer: number): void {
    this.#versions[buffer]++;
  }

  /** Writes a variable's bytes from `at` on; what stands before and after (padding rows) keeps its value. */
  write(name: string, data: ArrayBufferView, at = 0): void {
    const location = this.#require(name);
    this.device.upload(this.get(name)!, data, at);
    this.wrote(location.buffer);
  }

  /** Reads a variable, or its bytes [from, to). */
  async read(
    name: string,
    [from, to]: readonly [number, number] = [0, this.#require(name).size],
  ): Promise<ArrayBuffer> {
    const { size } = this.#require(name);
    if (!(0 <= from && from < to && to <= size)) {
      throw new RangeError(`Cannot read bytes ${from} to ${to} of variable ${name}: it has ${size}`);
    }
    const { buffer, offset } = this.get(name)!;
    return (await this.device.download([{ buffer, offset: offset + from, size: to - from }]))[0];
  }

  #require(name: string): Location {
    const location = this.#layout.get(name);
    if (location === undefined) throw new RangeError(`Cannot find variable ${name} in the store`);
    return location;
  }

  toString(): string {
    return this.#layout.toString();
  }

  [Symbol.dispose](): void {
    this.device.destroy(...this.#buffers.splice(0), ...[...this.#kept.values()].map(({ texture }) => texture));
    this.#kept.clear();
    this.#layout = new Layout(this.device.capabilities.limits);
  }
}
