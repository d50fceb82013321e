/**
 * What ranks say to each other: sums in a fixed order, so that every rank ends with the same bits, and broadcasts. Every
 * rank makes the same calls in the same order. It knows no gradient and no transport.
 */

/** Bytes of the memory each rank has for what it sums: what is summed at once is no larger. */
export const MEMORY_BYTES = 16 << 20;

/** f32 values, or bf16 values as bit patterns. */
export type Summands = Float32Array | Uint16Array;

export interface Communicator extends AsyncDisposable {
  /** This one's number, counted from 0. */
  readonly rank: number;
  readonly size: number;
  /** This rank's own MEMORY_BYTES, aligned to 64: `allReduce` of a view of it copies nothing. */
  readonly memory: Uint8Array;
  /**
   * Sums arrays of one length and type over all ranks, in place: ((rank 0 + rank 1) + rank 2) + … in f32, rounded to
   * nearest even where the values are bf16. Arrays beside `memory` may have any length and are copied through.
   *
   * @throws Abandoned where another rank ended.
   */
  allReduce(data: Summands): Promise<void>;
  /** Copies `data` of the rank `root` into that of all others, which has the same length. */
  broadcast(data: Uint8Array, root: number): Promise<void>;
  /** Returns when all ranks have called it. */
  barrier(): Promise<void>;
}

/** Another rank ended, so that what this one waits for won't come. */
export class Abandoned extends Error {
  override readonly name = "Abandoned";
  constructor(message = "another rank ended") {
    super(message);
  }
}

/** The communicator of a rank that is alone: there is nobody to sum with. */
export function alone(): Communicator {
  return {
    rank: 0,
    size: 1,
    memory: new Uint8Array(0),
    allReduce: () => Promise.resolve(),
    broadcast: () => Promise.resolve(),
    barrier: () => Promise.resolve(),
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
}

/** What each rank gives, by rank: values that JSON holds. */
export async function gatherJson<T>(communicator: Communicator, own: T): Promise<T[]> {
  const all: T[] = [];
  for (let rank = 0; rank < communicator.size; rank++) {
    all.push(await broadcastJson(communicator, rank === communicator.rank ? own : undefined, rank));
  }
  return all;
}

/** Sends a value that JSON holds from `root` to all ranks. */
export async function broadcastJson<T>(communicator: Communicator, value: T | undefined, root = 0): Promise<T> {
  const sends = communicator.rank === root;
  const text = sends ? new TextEncoder().encode(JSON.stringify(value)) : new Uint8Array(0);
  const length = new Uint32Array([text.length]);
  await communicator.broadcast(new Uint8Array(length.buffer), root);
  const bytes = sends ? text : new Uint8Array(length[0]);
  await communicator.broadcast(bytes, root);
  return sends ? value as T : JSON.parse(new TextDecoder().decode(bytes));
}
