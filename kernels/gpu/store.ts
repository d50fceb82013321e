/**
 * The store: named memory that outlives a program (parameters, gradients, moments, KV blocks). Programs share it by name.
 * Variables of one kind lie back to back in few large buffers, so that the optimizer, the norm and an all-reduce see flat
 * arrays while every other kernel binds its slice. It knows no op.
 */
import type { BufferSlice, Device } from "./device.ts";
import { byteLength, count, type TensorType } from "./graph.ts";

export interface Entry extends TensorType {
  readonly name: string;
  /** Entries with weight decay stand first, so that an optimizer runs over few ranges. */
  readonly decay?: boolean;
}

/** A flat f32 array over consecutive variables of a kind; itself a variable of this name. */
export interface Range {
  readonly name: string;
  readonly elements: number;
  readonly decay: boolean;
}

/** Every variable starts at a multiple of this, which every adapter's binding offset divides. */
const ALIGNMENT = 256;

interface Variable extends TensorType, BufferSlice {}

/** An empty store; disposing of it frees all of its variables. */
export function createStore(device: Device): Store {
  return new Store(device);
}

/** Variables by name; made by `createStore`. */
export class Store implements Disposable {
  readonly #variables = new Map<string, Variable>();
  readonly #ranges = new Map<string, Range[]>();
  readonly #buffers: GPUBuffer[] = [];

  constructor(readonly device: Device) {}

  /**
   * Makes zeroed variables of a kind. Kinds with the same entries (by shape and order) have the same ranges.
   *
   * @throws RangeError for a name that is taken or a variable larger than a buffer.
   */
  allocate(kind: string, entries: readonly Entry[]): void {
    if (this.#ranges.has(kind)) throw new RangeError(`Cannot allocate ${kind}: it stands already`);
    const ranges: Range[] = [];
    this.#ranges.set(kind, ranges);
    for (const decay of [true, false]) {
      const group = entries.filter((entry) => (entry.decay ?? false) === decay);
      for (const part of this.#split(group)) this.#allocate(kind, part, decay, ranges);
    }
  }

  /** Entries by buffers, none larger than the adapter's. */
  #split(entries: readonly Entry[]): Entry[][] {
    const limit = this.device.capabilities.limits.maxBufferSize;
    const parts: Entry[][] = [];
    let bytes = Infinity;
    for (const entry of entries) {
      const size = aligned(byteLength(entry));
      if (size > limit) throw new RangeError(`Cannot allocate ${entry.name} of ${size} bytes: a buffer holds ${limit}`);
      if (bytes + size > limit) {
        parts.push([]);
        bytes = 0;
      }
      parts.at(-1)!.push(entry);
      bytes += size;
    }
    return parts;
  }

  #allocate(kind: string, entries: readonly Entry[], decay: boolean, ranges: Range[]): void {
    const total = entries.reduce((sum, entry) => sum + aligned(byteLength(entry)), 0);
    const buffer = this.device.createBuffer(total, `${kind} ${decay ? "decayed" : "not decayed"}`);
    this.#buffers.push(buffer);
    let offset = 0;
    for (const { name, shape, dtype } of entries) {
      if (this.#variables.has(name)) throw new RangeError(`Cannot allocate ${name}: the name is taken`);
      this.#variables.set(name, { buffer, offset, size: byteLength({ shape, dtype }), shape: [...shape], dtype });
      offset += aligned(byteLength({ shape, dtype }));
    }
    const step = Math.floor(this.device.capabilities.limits.maxStorageBufferBindingSize / ALIGNMENT) * ALIGNMENT;
    for (let from = 0; from < total; from += step) {
      const size = Math.min(step, total - from);
      const range = { name: `${kind}/${ranges.length}`, elements: size / 4, decay };
      ranges.push(range);
      this.#variables.set(range.name, { buffer, offset: from, size, shape: [range.elements], dtype: "f32" });
    }
  }

  /** The flat arrays that cover all variables of a kind, padding between them included (it is zero and stays zero). */
  ranges(kind: string): readonly Range[] {
    return this.#ranges.get(kind) ?? [];
  }

  get(name: string): (BufferSlice & TensorType) | undefined {
    return this.#variables.get(name);
  }

  /** Writes a variable's first elements; what follows (padding rows) keeps its value. */
  write(name: string, data: ArrayBufferView): void {
    this.device.upload(this.#require(name), data);
  }

  /** Reads a variable whole. */
  async read(name: string): Promise<ArrayBuffer> {
    return (await this.device.download([this.#require(name)]))[0];
  }

  #require(name: string): Variable {
    const variable = this.#variables.get(name);
    if (variable === undefined) throw new RangeError(`Cannot find variable ${name} in the store`);
    return variable;
  }

  toString(): string {
    return [...this.#variables].map(([name, { shape, dtype }]) => `${name} (${shape.join(", ")}) ${dtype}`).join("\n");
  }

  [Symbol.dispose](): void {
    this.device.destroy(...this.#buffers.splice(0));
    this.#variables.clear();
    this.#ranges.clear();
  }
}

/** Whether a store's variable fits what a graph declares: the same element count and type. */
export function fits(variable: TensorType, declared: TensorType): boolean {
  return variable.dtype === declared.dtype && count(variable) === count(declared);
}

function aligned(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;
}
