/** One rank of the allreduce bench, as a Worker or a process: sums so many bytes by buckets, each time it is asked. */
import { BUCKET_BYTES } from "../train/buckets.ts";
import type { Wire } from "../train/job.ts";
import { openPosixRegion } from "../train/posix_memory.ts";
import { regionBytes, sharedCommunicator, type SharedRegion, threadRegion } from "../train/shared_memory.ts";
import { TextLineStream } from "../model/lines.ts";

export interface Place {
  readonly rank: number;
  readonly size: number;
  readonly elements: number;
  readonly wire: Wire;
}

/** Sums all elements once. @returns milliseconds from when all ranks were there. */
export function summing(region: SharedRegion, { rank, size, elements, wire }: Place): () => Promise<number> {
  const communicator = sharedCommunicator(region, { rank, size });
  const { buffer, byteOffset } = communicator.memory;
  const bytesEach = wire === "f32" ? 4 : 2;
  const most = BUCKET_BYTES / bytesEach;
  const array = (length: number, slot: number) => {
    const at = byteOffset + slot * BUCKET_BYTES;
    return wire === "f32" ? new Float32Array(buffer, at, length) : new Uint16Array(buffer, at, length);
  };
  for (const slot of [0, 1]) array(most, slot).fill(0);
  return async () => {
    await communicator.barrier();
    const began = performance.now();
    for (let from = 0, slot = 0; from < elements; from += most, slot ^= 1) {
      await communicator.allReduce(array(Math.min(most, elements - from), slot));
    }
    return performance.now() - began;
  };
}

if (Deno.args[0] === "process") {
  const [, name, text] = Deno.args;
  const place: Place = JSON.parse(text);
  const sum = summing(openPosixRegion(name, regionBytes(place.size)), place);
  console.log(JSON.stringify({ ready: {} }));
  for await (const _ of Deno.stdin.readable.pipeThrough(new TextDecoderStream()).pipeThrough(new TextLineStream())) {
    console.log(JSON.stringify({ ms: await sum() }));
  }
} else {
  const scope = globalThis as unknown as { onmessage: unknown; postMessage(message: unknown): void };
  let sum: () => Promise<number>;
  scope.onmessage = async ({ data }: MessageEvent<{ place: Place; memory: SharedArrayBuffer } | "run">) => {
    if (data === "run") return scope.postMessage(await sum());
    sum = summing(threadRegion(data.memory), data.place);
  };
}
