/**
 * Memory of values and textures that live within a run. Programs that never run at once take turns in one workspace: each
 * finds the other's values there, so outputs are read before the next one runs. It knows no op.
 */
import type { Device } from "./device.ts";
import { type Blueprint, bufferBytes } from "./blueprint.ts";
import { textureBytes, type TextureShape } from "./textures.ts";

/** What a program takes of a pool: an index for each of its slots and textures. */
export interface Taken {
  readonly slots: readonly number[];
  readonly textures: readonly number[];
}

/** The sizes of a workspace: pure, so that what programs will hold together is known without a device. */
export class Pool {
  readonly slots: number[] = [];
  readonly textures: TextureShape[] = [];
  /** Slots that hold values from a forward to a backward pass. */
  readonly #carrying = new Set<number>();

  /** Finds each slot and texture a place that the program hasn't taken yet, the smallest that fits, or adds one. */
  take({ plan, textures }: Pick<Blueprint, "plan" | "textures">): Taken {
    const free = new Set(this.slots.keys());
    const slots = plan.slots.map((bytes, slot) => {
      const fitting = [...free].filter((index) => this.slots[index] >= bytes);
      const index = fitting.sort((a, b) => this.slots[a] - this.slots[b])[0] ?? this.slots.push(bytes) - 1;
      free.delete(index);
      if (plan.carrying.has(slot)) this.#carrying.add(index);
      return index;
    });
    const unused = new Set(this.textures.keys());
    const taken = textures.shapes.map((shape) => {
      const index = [...unused].find((index) => sameShape(this.textures[index], shape)) ??
        this.textures.push(shape) - 1;
      unused.delete(index);
      return index;
    });
    return { slots, textures: taken };
  }

  /** Bytes of slots that hold values from a forward to a backward pass, and of everything else. */
  get bytes(): { readonly activations: number; readonly scratch: number } {
    const total = sum(this.slots.map(bufferBytes)) + sum(this.textures.map(textureBytes));
    const activations = sum([...this.#carrying].map((index) => bufferBytes(this.slots[index])));
    return { activations, scratch: total - activations };
  }
}

/** A pool made real. */
export class Workspace implements Disposable {
  readonly pool = new Pool();
  readonly #slots: GPUBuffer[] = [];
  readonly #textures: GPUTexture[] = [];

  constructor(readonly device: Device) {}

  take(blueprint: Blueprint): { slots: GPUBuffer[]; textures: GPUTexture[] } {
    const { slots, textures } = this.pool.take(blueprint);
    for (let index = this.#slots.length; index < this.pool.slots.length; index++) {
      this.#slots.push(this.device.createBuffer(this.pool.slots[index], `slot ${index}`));
    }
    for (const { width, height, format } of this.pool.textures.slice(this.#textures.length)) {
      this.#textures.push(this.device.createTexture(width, height, format));
    }
    return {
      slots: slots.map((index) => this.#slots[index]),
      textures: textures.map((index) => this.#textures[index]),
    };
  }

  [Symbol.dispose](): void {
    this.device.destroy(...this.#slots.splice(0), ...this.#textures.splice(0));
  }
}

function sameShape(a: TextureShape, b: TextureShape): boolean {
  return a.format === b.format && a.width === b.width && a.height === b.height;
}

function sum(sizes: readonly number[]): number {
  return sizes.reduce((total, size) => total + size, 0);
}
