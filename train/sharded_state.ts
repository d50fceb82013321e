/**
 * What ranks that share an optimizer's state give each other: updated parameters after each update, moments for a checkpoint.
 * Every rank makes the same calls in the same order. It knows no graph.
 */
import type { Store } from "../kernels/gpu/store.ts";
import type { Communicator } from "./communicator.ts";
import { locate, type Part, type Sharded, variablesOf } from "./parts.ts";

/** Bytes that one rank sends at once. */
const PIECE_BYTES = 4 << 20;

export class ShardedState {
  constructor(readonly store: Store, readonly parts: Sharded, readonly communicator: Communicator) {}

  /** Brings each rank's part of the parameters to all others. */
  async gatherParameters(): Promise<void> {
    for (const part of this.parts.all) {
      const [{ name }] = variablesOf([part], "parameter");
      const mine = part.rank === this.communicator.rank;
      for (let from = 0; from < 4 * part.elements; from += PIECE_BYTES) {
        const to = Math.min(from + PIECE_BYTES, 4 * part.elements);
        const bytes = new Uint8Array(mine ? await this.store.read(name, [from, to]) : new ArrayBuffer(to - from));
        await this.communicator.broadcast(bytes, part.rank);
        if (!mine) this.store.write(name, bytes, from);
      }
    }
  }

  /** The moments of a parameter, from the ranks that keep them. @param kind "exp_avg" or "exp_avg_sq". */
  async read(kind: string, parameter: string): Promise<Float32Array> {
    const { size } = this.store.layout.get(parameter)!;
    const result = new Uint8Array(size);
    for (const { part, at, from, bytes } of this.#overlaps(parameter)) {
      const piece = result.subarray(at, at + bytes);
      if (part.rank === this.communicator.rank) {
        const [{ name }] = variablesOf([part], kind);
        piece.set(new Uint8Array(await this.store.read(name, [from, from + bytes])));
      }
      await this.communicator.broadcast(piece, part.rank);
    }
    return new Float32Array(result.buffer);
  }

  /** Sets what this rank keeps of the moments of a parameter. */
  write(kind: string, parameter: string, values: Float32Array): void {
    const data = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    for (const { part, at, from, bytes } of this.#overlaps(parameter)) {
      if (part.rank !== this.communicator.rank) continue;
      const [{ name }] = variablesOf([part], kind);
      const piece = data.subarray(at, Math.min(at + bytes, data.length)); // padding isn't in `values`, and stays zero
      if (piece.length > 0) this.store.write(name, piece, from);
    }
  }

  /** Where parts and a parameter meet: `at` in the parameter, `from` in the part. */
  #overlaps(parameter: string): { part: Part; at: number; from: number; bytes: number }[] {
    const { layout } = this.store;
    const { buffer, offset, size } = layout.get(parameter)!;
    return this.parts.all.flatMap((part) => {
      const place = locate(layout, part);
      const [from, to] = [Math.max(offset, place.from), Math.min(offset + size, place.to)];
      if (place.buffer !== buffer || from >= to) return [];
      return [{ part, at: from - offset, from: from - place.from, bytes: to - from }];
    });
  }
}
