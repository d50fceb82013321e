/**
 * Sums gradients over ranks while the backward pass still runs: bucket by bucket they leave the GPU, are summed by a
 * communicator and go back up. It knows no model and no optimizer.
 */
import { cast } from "../kernels/cast.ts";
import type { BufferSlice } from "../kernels/gpu/device.ts";
import { Graph } from "../kernels/gpu/graph.ts";
import { compile, type Program } from "../kernels/gpu/program.ts";
import { Readback } from "../kernels/gpu/readback.ts";
import type { Store } from "../kernels/gpu/store.ts";
import { type Bucket, BUCKET_BYTES } from "./buckets.ts";
import type { Communicator, Summands } from "./communicator.ts";
import type { Wire } from "./job.ts";

/** Buckets in flight: one on its way through the communicator while the next is read. */
const SLOTS = 2;

/** Bytes on the device that an exchange holds. */
export function exchangeBytes(wire: Wire): number {
  return SLOTS * (BUCKET_BYTES + (wire === "bf16" ? BUCKET_BYTES / 2 : 0));
}

/** What of the store travels for one bucket, by its slot, and how it gets there and back. */
interface Parcel {
  /** Variable that is read back and written. */
  readonly variable: string;
  readonly elements: number;
  /** Where gradients travel in another format: casts to it and from it. */
  readonly pack?: Program;
  readonly unpack?: Program;
}

export interface ExchangeOptions {
  readonly communicator: Communicator;
  readonly wire: Wire;
}

/** Names buckets as variables, and compiles casts where gradients travel as bf16. */
export async function openExchange(
  store: Store,
  buckets: readonly Bucket[],
  options: ExchangeOptions,
): Promise<GradientExchange> {
  if (options.wire === "bf16") {
    const wire = (slot: number) => ({ name: wireName(slot), shape: [BUCKET_BYTES / 4], dtype: "bf16" }) as const;
    store.allocate("wire", Array.from({ length: SLOTS }, (_, slot) => wire(slot)));
  }
  const parcels: Parcel[] = [];
  for (const [index, bucket] of buckets.entries()) {
    const variable = `bucket/${index}`;
    const { elements } = bucket;
    store.layout.view(variable, bucket);
    if (options.wire === "f32") parcels.push({ variable, elements });
    else parcels.push(await casting(store, variable, wireName(index % SLOTS), elements));
  }
  return new GradientExchange(store, buckets, parcels, options.communicator);
}

function wireName(slot: number): string {
  return `wire/${slot}`;
}

async function casting(store: Store, variable: string, wire: string, elements: number): Promise<Parcel> {
  const compiled = async (build: (graph: Graph) => void) => {
    const graph = new Graph();
    build(graph);
    return await compile(store.device, graph, {}, store);
  };
  const packed = `${wire} of ${elements}`;
  store.layout.view(packed, { ...store.layout.get(wire)!, elements, dtype: "bf16" });
  const gradient = (graph: Graph) => graph.variable(variable, [elements]);
  const travelling = (graph: Graph) => graph.variable(packed, [elements], "bf16");
  return {
    variable: packed,
    elements,
    pack: await compiled((graph) => cast(gradient(graph), "bf16", travelling(graph))),
    unpack: await compiled((graph) => cast(travelling(graph), "f32", gradient(graph))),
  };
}

/** The sum of gradients over ranks; made by `openExchange`. */
export class GradientExchange implements Disposable {
  readonly #slots: readonly Readback[];

  constructor(
    readonly store: Store,
    readonly buckets: readonly Bucket[],
    readonly parcels: readonly Parcel[],
    readonly communicator: Communicator,
  ) {
    this.#slots = Array.from({ length: SLOTS }, () => new Readback(store.device, BUCKET_BYTES));
  }

  /**
   * Runs a backward pass to its end and sums all buckets over the ranks meanwhile.
   *
   * @param launched submits a segment at each step; nothing where this rank had no rows.
   * @param segmentOf the segment that makes a bucket whole.
   */
  async run(launched: Iterator<number>, segmentOf: (bucket: Bucket) => number): Promise<void> {
    let submitted = -1;
    const submit = (segment: number) => {
      while (submitted < segment) {
        const { done, value } = launched.next();
        submitted = done ? Infinity : value;
      }
    };
    const travelling: Promise<void>[] = [];
    for (const [index, parcel] of this.parcels.entries()) {
      const slot = index % SLOTS;
      await travelling[slot];
      submit(segmentOf(this.buckets[index]));
      parcel.pack?.run();
      const read = this.#slots[slot].begin(this.#slice(parcel));
      // The GPU goes on meanwhile, where there is anything left.
      const next = index + 1 < this.buckets.length ? segmentOf(this.buckets[index + 1]) : Infinity;
      submit(Math.max(next, submitted + 1));
      await read;
      travelling[slot] = this.#sum(parcel, slot);
      travelling[slot].catch(() => {}); // it is thrown where it is awaited; unheard until then it would end the process
    }
    submit(Infinity);
    await Promise.all(travelling);
  }

  #slice({ variable }: Parcel): BufferSlice {
    const { buffer, offset, size } = this.store.get(variable)!;
    return { buffer, offset, size: Math.ceil(size / 4) * 4 };
  }

  async #sum(parcel: Parcel, slot: number): Promise<void> {
    const { size } = this.#slice(parcel);
    const { buffer, byteOffset } = this.communicator.memory;
    const bytes = new Uint8Array(buffer, byteOffset + slot * BUCKET_BYTES, size);
    this.#slots[slot].take(bytes);
    const data: Summands = parcel.pack === undefined
      ? new Float32Array(buffer, bytes.byteOffset, size / 4)
      : new Uint16Array(buffer, bytes.byteOffset, size / 2);
    await this.communicator.allReduce(data);
    this.store.write(parcel.variable, bytes);
    parcel.unpack?.run();
  }

  [Symbol.dispose](): void {
    for (const slot of this.#slots) slot[Symbol.dispose]();
    for (const { pack, unpack } of this.parcels) {
      pack?.[Symbol.dispose]();
      unpack?.[Symbol.dispose]();
    }
  }
}
