/**
 * Reading back: at once, or while the GPU goes on, when a copy is begun, other work submitted, and only then taken. It knows
 * no tensor and no op.
 */
import type { BufferSlice, Device } from "./device.ts";

/** Reading back goes by chunks of this many bytes: mapping one large range is slower. */
export const STAGING_BYTES = 4 << 20;

/**
 * Deno's mapAsync has already waited when it returns, so that a mapped range can be taken without a 10 ms sleep. That is
 * behaviour of these versions, no contract; other versions await.
 */
const MAPS_AT_ONCE = /^2\.9\./.test(globalThis.Deno?.version?.deno ?? "");

/** Staging memory for one copy at a time. */
export class Readback implements Disposable {
  readonly #pieces: { readonly buffer: GPUBuffer; fresh: boolean }[];
  #bytes = 0;

  /** @param bytes the most that is copied at once. */
  constructor(readonly device: Device, bytes: number) {
    const usage = GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST;
    this.#pieces = Array.from({ length: Math.ceil(bytes / STAGING_BYTES) }, (_, i) => {
      const size = Math.min(STAGING_BYTES, bytes - i * STAGING_BYTES);
      return { buffer: device.createBuffer(size, "readback", usage), fresh: true };
    });
  }

  /**
   * Copies a slice as it stands after all work submitted before. Deno blocks here until the GPU is idle; so submit what
   * shall run meanwhile between this call and awaiting its promise.
   */
  async begin({ buffer, offset, size }: BufferSlice): Promise<void> {
    this.device.check();
    this.#bytes = size;
    const encoder = this.device.gpu.createCommandEncoder();
    const used = this.#used();
    for (const { piece, from, bytes } of used) {
      encoder.copyBufferToBuffer(buffer, offset + from, piece.buffer, 0, bytes);
    }
    this.device.gpu.queue.submit([encoder.finish()]);
    const awaited: Promise<undefined>[] = [];
    for (const { piece, bytes } of used) {
      const mapped = piece.buffer.mapAsync(GPUMapMode.READ, 0, bytes) as Promise<undefined>;
      // The first map of a buffer must be awaited: getMappedRange would abort the process.
      if (piece.fresh || !MAPS_AT_ONCE) awaited.push(mapped);
      else mapped.catch((error) => this.device.fail(String(error)));
      piece.fresh = false;
    }
    await Promise.all(awaited);
    this.device.check();
  }

  /** Takes what the last `begin` copied, once its promise is kept. */
  take(into: Uint8Array): void {
    for (const { piece, from, bytes } of this.#used()) {
      into.set(new Uint8Array(piece.buffer.getMappedRange(0, bytes)), from);
      piece.buffer.unmap();
    }
  }

  #used() {
    return this.#pieces.slice(0, Math.ceil(this.#bytes / STAGING_BYTES)).map((piece, i) => {
      const from = i * STAGING_BYTES;
      return { piece, from, bytes: Math.min(STAGING_BYTES, this.#bytes - from) };
    });
  }

  [Symbol.dispose](): void {
    this.device.destroy(...this.#pieces.map(({ buffer }) => buffer));
  }
}

/** A piece of a slice and where it goes. */
interface Piece {
  readonly slice: BufferSlice;
  readonly from: number;
  readonly size: number;
  readonly into: Uint8Array;
}

/** Reads slices at once, through one staging buffer. */
export class Downloads {
  #staging: GPUBuffer | null = null;

  constructor(readonly device: Device) {}

  /** The slices' bytes, in order; all that fit in one chunk share one wait. */
  async read(slices: readonly BufferSlice[]): Promise<ArrayBuffer[]> {
    const results = slices.map((slice) => new Uint8Array(slice.size));
    let batch: Piece[] = [];
    let filled = 0;
    for (const [index, slice] of slices.entries()) {
      for (let from = 0; from < slice.size;) {
        const size = Math.min(slice.size - from, STAGING_BYTES - filled);
        batch.push({ slice, from, size, into: results[index].subarray(from, from + size) });
        from += size;
        filled += Math.ceil(size / 8) * 8;
        if (filled >= STAGING_BYTES) {
          await this.#fetch(batch);
          batch = [];
          filled = 0;
        }
      }
    }
    if (batch.length > 0) await this.#fetch(batch);
    this.device.check();
    return results.map((result) => result.buffer);
  }

  async #fetch(pieces: readonly Piece[]): Promise<void> {
    const { device } = this;
    const fresh = this.#staging === null;
    const usage = GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST;
    const staging = this.#staging ??= device.createBuffer(STAGING_BYTES, "staging", usage);
    device.check();
    const encoder = device.gpu.createCommandEncoder();
    let at = 0;
    for (const { slice, from, size } of pieces) {
      encoder.copyBufferToBuffer(slice.buffer, slice.offset + from, staging, at, Math.ceil(size / 4) * 4);
      at += Math.ceil(size / 8) * 8;
    }
    device.gpu.queue.submit([encoder.finish()]);
    const mapped = staging.mapAsync(GPUMapMode.READ, 0, at);
    // The first map of a buffer must be awaited: getMappedRange would abort the process.
    if (fresh || !MAPS_AT_ONCE) await mapped;
    else mapped.catch((error) => device.fail(String(error)));
    device.check();
    const range = new Uint8Array(staging.getMappedRange(0, at));
    at = 0;
    for (const { size, into } of pieces) {
      into.set(range.subarray(at, at + size));
      at += Math.ceil(size / 8) * 8;
    }
    staging.unmap();
  }
}
