/**
 * Ranks of several machines as one: each machine's ranks sum among themselves, their first ranks sum across machines, and
 * the others get what came out. It knows neither transport.
 */
import { broadcastJson, type Communicator, type Summands } from "./communicator.ts";

/**
 * The ranks of all machines, numbered machine by machine. `across` joins the first ranks of the machines, and is null on
 * all others. Sums are (rank 0 + rank 1 + …) of the first machine + those of the second + …, bf16 rounded at each level.
 * Disposes of both.
 */
export async function hierarchical(local: Communicator, across: Communicator | null): Promise<Communicator> {
  if ((across === null) !== (local.rank !== 0)) {
    throw new RangeError(
      `Cannot join machines by local rank ${local.rank}: rank 0 alone has a communicator across them`,
    );
  }
  const sizes = await broadcastJson(local, across === null ? undefined : await sizesOf(local, across));
  const machine = await broadcastJson(local, across?.rank);
  return new Hierarchy(local, across, sizes, machine);
}

/** How many ranks each machine has. */
async function sizesOf(local: Communicator, across: Communicator): Promise<readonly number[]> {
  const sizes: number[] = [];
  for (let machine = 0; machine < across.size; machine++) {
    sizes.push(await broadcastJson(across, machine === across.rank ? local.size : undefined, machine));
  }
  return sizes;
}

class Hierarchy implements Communicator {
  readonly rank: number;
  readonly size: number;
  readonly memory: Uint8Array;
  /** Calls are done one after the other: all ranks of a machine must make them in one order. */
  #last: Promise<void> = Promise.resolve();

  constructor(
    readonly local: Communicator,
    readonly across: Communicator | null,
    readonly sizes: readonly number[],
    readonly machine: number,
  ) {
    this.rank = sum(sizes.slice(0, machine)) + local.rank;
    this.size = sum(sizes);
    this.memory = local.size === 1 && across !== null ? across.memory : local.memory;
  }

  #next(task: () => Promise<void>): Promise<void> {
    return this.#last = this.#last.then(task);
  }

  allReduce(data: Summands): Promise<void> {
    return this.#next(async () => {
      await this.local.allReduce(data);
      await this.across?.allReduce(data);
      await this.local.broadcast(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), 0);
    });
  }

  broadcast(data: Uint8Array, root: number): Promise<void> {
    return this.#next(async () => {
      const { machine, rank } = placeOf(this.sizes, root);
      if (this.machine === machine) await this.local.broadcast(data, rank);
      await this.across?.broadcast(data, machine);
      if (this.machine !== machine) await this.local.broadcast(data, 0);
    });
  }

  barrier(): Promise<void> {
    return this.#next(async () => {
      await this.local.barrier();
      await this.across?.barrier();
      await this.local.barrier();
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.across?.[Symbol.asyncDispose]();
    await this.local[Symbol.asyncDispose]();
  }
}

/** The machine of a rank, and its number there. */
function placeOf(sizes: readonly number[], rank: number): { readonly machine: number; readonly rank: number } {
  let machine = 0;
  for (; rank >= sizes[machine]; machine++) rank -= sizes[machine];
  return { machine, rank };
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
