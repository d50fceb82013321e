/** One rank of a test, as a Worker or a process: says what each of a list of calls left it with. */
import { type Communicator, gatherJson, MEMORY_BYTES } from "../../train/communicator.ts";
import { openPosixRegion } from "../../train/posix_memory.ts";
import { regionBytes, sharedCommunicator, type SharedRegion, threadRegion } from "../../train/shared_memory.ts";

export interface Place {
  readonly rank: number;
  readonly size: number;
  readonly task: keyof typeof tasks;
}

/** The values rank `rank` contributes: of very different sizes, so that the order of a sum shows. */
export function summand(rank: number, length: number): Float32Array {
  return Float32Array.from(
    { length },
    (_, i) => Math.sin(i * 7919 + rank * 104729) * 10 ** ((i * 31 + rank * 7) % 9 - 4),
  );
}

/** Lengths to sum: none of a rank's own, ragged, past several blocks. */
export const LENGTHS = [1, 63, 64, 130, 5000, 300_001];

const tasks = {
  /** Sums in place, in the ranks' memory and beside it, twice in a row. */
  async sums(communicator: Communicator) {
    const { rank, memory } = communicator;
    const results: number[][] = [];
    for (const length of LENGTHS) {
      const inside = new Float32Array(memory.buffer, memory.byteOffset + 64, length);
      const halves = new Uint16Array(memory.buffer, memory.byteOffset + MEMORY_BYTES / 2, length);
      const outside = summand(rank, length);
      inside.set(outside);
      halves.set(Uint16Array.from(new Uint32Array(outside.buffer), (bits) => bits >>> 16));
      await communicator.allReduce(inside);
      await communicator.allReduce(outside);
      await communicator.allReduce(halves);
      results.push([hash(inside), hash(outside), hash(halves)]);
    }
    return results;
  },
  async special(communicator: Communicator) {
    const { rank, memory } = communicator;
    const values = [[Infinity, -Infinity, NaN, -0], [1, Infinity, 2, -0], [1, 1, 1, -0]][rank];
    const data = new Float32Array(memory.buffer, memory.byteOffset, 4);
    data.set(values);
    await communicator.allReduce(data);
    return [...data].map(String);
  },
  async broadcasts(communicator: Communicator) {
    const bytes = new Uint8Array(3_000_001).fill(communicator.rank + 1);
    await communicator.broadcast(bytes, communicator.size - 1);
    const all = await gatherJson(communicator, { rank: communicator.rank, text: "é".repeat(communicator.rank) });
    return [bytes.every((byte) => byte === communicator.size), all];
  },
  /** Rank 0 sums while the others broadcast. */
  async mixes(communicator: Communicator) {
    const call = communicator.rank === 0
      ? communicator.allReduce(new Float32Array(4))
      : communicator.broadcast(new Uint8Array(3), 1);
    return await call.then(() => "met", (error) => error.message);
  },
  /** The last rank never comes. */
  async waits(communicator: Communicator) {
    if (communicator.rank === communicator.size - 1) await new Promise((resolve) => setTimeout(resolve, 600_000));
    return await communicator.barrier().then(() => "met", (error) => error.name);
  },
} as const;

/** FNV-1a over the bytes. */
function hash({ buffer, byteOffset, byteLength }: ArrayBufferView): number {
  return new Uint8Array(buffer, byteOffset, byteLength).reduce(
    (sum, byte) => Math.imul(sum ^ byte, 16777619),
    2166136261,
  );
}

async function run(region: SharedRegion, { rank, size, task }: Place, onWait?: () => void): Promise<unknown> {
  return await tasks[task](sharedCommunicator(region, { rank, size, onWait }));
}

if (import.meta.main && Deno.args.length > 0) {
  const [path, text] = Deno.args;
  const place: Place = JSON.parse(text);
  console.log(JSON.stringify(await run(openPosixRegion(path, regionBytes(place.size)), place)));
} else if ("onmessage" in globalThis) {
  const scope = globalThis as unknown as { onmessage: unknown; postMessage(message: unknown): void };
  scope.onmessage = async ({ data }: MessageEvent<Place & { memory: SharedArrayBuffer }>) => {
    let waits = 0;
    const result = await run(threadRegion(data.memory), data, () => waits++);
    scope.postMessage({ result, waits });
  };
}
