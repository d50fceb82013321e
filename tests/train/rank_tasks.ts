/** What ranks of tests do: each task says what a list of calls left it with. */
import { type Communicator, gatherJson, MEMORY_BYTES } from "../../train/communicator.ts";

/** The values rank `rank` contributes: of very different sizes, so that the order of a sum shows. */
export function summand(rank: number, length: number): Float32Array {
  return Float32Array.from(
    { length },
    (_, i) => Math.sin(i * 7919 + rank * 104729) * 10 ** ((i * 31 + rank * 7) % 9 - 4),
  );
}

/** Lengths to sum: none of a rank's own, ragged, past several blocks. */
export const LENGTHS = [1, 63, 64, 130, 5000, 300_001];

export const tasks = {
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
