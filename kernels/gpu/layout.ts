/**
 * Where the variables of a store lie: pure, so that what a model will hold is known before anything is made. Variables of
 * one kind lie back to back in few large buffers. It knows no op and makes no buffer.
 */
import { byteLength, type Capabilities, count, type DType, type TensorType } from "./graph.ts";

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

/** A variable's bytes: of which buffer, from where, how many. */
export interface Location extends TensorType {
  readonly buffer: number;
  readonly offset: number;
  readonly size: number;
}

/** Elements of a buffer, from a byte on. */
export interface Span {
  readonly buffer: number;
  readonly offset: number;
  readonly elements: number;
  /** Default: f32. */
  readonly dtype?: DType;
}

export interface LaidBuffer {
  readonly kind: string;
  readonly label: string;
  readonly bytes: number;
}

/** Every variable starts at a multiple of this, which every adapter's binding offset divides. */
const ALIGNMENT = 256;

type Limits = Pick<Capabilities["limits"], "maxBufferSize" | "maxStorageBufferBindingSize">;

/** Variables by name, kind after kind, as a store on an adapter with these limits lays them out. */
export class Layout {
  readonly buffers: LaidBuffer[] = [];
  readonly #variables = new Map<string, Location>();
  readonly #ranges = new Map<string, Range[]>();

  constructor(readonly limits: Limits) {}

  /**
   * Adds the variables of a kind. Kinds with the same entries (by shape and order) have the same ranges.
   *
   * @throws RangeError for a name that is taken or a variable larger than a buffer.
   */
  allocate(kind: string, entries: readonly Entry[]): void {
    if (this.#ranges.has(kind)) throw new RangeError(`Cannot allocate ${kind}: it stands already`);
    const taken = entries.find(({ name }) => this.#variables.has(name));
    if (taken !== undefined) throw new RangeError(`Cannot allocate ${taken.name}: the name is taken`);
    const ranges: Range[] = [];
    this.#ranges.set(kind, ranges);
    for (const decay of [true, false]) {
      const group = entries.filter((entry) => (entry.decay ?? false) === decay);
      for (const part of this.#split(group)) this.#allocate(kind, part, decay, ranges);
    }
  }

  /** Entries by buffers, none larger than the adapter's. */
  #split(entries: readonly Entry[]): Entry[][] {
    const limit = this.limits.maxBufferSize;
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
    const buffer = this.buffers.length;
    let offset = 0;
    for (const { name, shape, dtype } of entries) {
      const size = byteLength({ shape, dtype });
      this.#variables.set(name, { buffer, offset, size, shape: [...shape], dtype });
      offset += aligned(size);
    }
    this.buffers.push({ kind, label: `${kind} ${decay ? "decayed" : "not decayed"}`, bytes: offset });
    const step = Math.floor(this.limits.maxStorageBufferBindingSize / ALIGNMENT) * ALIGNMENT;
    for (let from = 0; from < offset; from += step) {
      const size = Math.min(step, offset - from);
      const range = { name: `${kind}/${ranges.length}`, elements: size / 4, decay };
      ranges.push(range);
      this.#variables.set(range.name, { buffer, offset: from, size, shape: [range.elements], dtype: "f32" });
    }
  }

  /** The flat arrays that cover all variables of a kind, padding between them included (it is zero and stays zero). */
  ranges(kind: string): readonly Range[] {
    return this.#ranges.get(kind) ?? [];
  }

  /** Names elements of a buffer, from a byte on, which are then a variable too. It may reach over others. */
  view(name: string, { buffer, offset, elements, dtype = "f32" }: Span): void {
    const type = { shape: [elements], dtype };
    this.#variables.set(name, { buffer, offset, size: byteLength(type), ...type });
  }

  get(name: string): Location | undefined {
    return this.#variables.get(name);
  }

  /** Bytes of a kind's variables; of all kinds, where none is named. */
  bytes(kind?: string): number {
    const counted = this.buffers.filter((buffer) => kind === undefined || buffer.kind === kind);
    return counted.reduce((sum, { bytes }) => sum + bytes, 0);
  }

  toString(): string {
    return [...this.#variables].map(([name, { shape, dtype }]) => `${name} (${shape.join(", ")}) ${dtype}`).join("\n");
  }
}

/** Whether a variable fits what a graph declares: the same element count and type. */
export function fits(variable: TensorType, declared: TensorType): boolean {
  return variable.dtype === declared.dtype && count(variable) === count(declared);
}

function aligned(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;
}
