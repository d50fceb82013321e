/**
 * Reading back while the GPU goes on: a copy is begun, other work submitted, and only then taken. It knows no tensor and
 * no op.
 */
import { type BufferSlice, type Device, MAPS_AT_ONCE, STAGING_BYTES } from "./device.ts";

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
