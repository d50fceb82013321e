/**
 * Ranks under mpirun: a Communicator whose sums are taken by the ranks themselves, in rank order, so that their bits depend
 * on no library. Nothing blocks: requests are tested between other events. It knows no gradient.
 */
import { setImmediate, setTimeout } from "node:timers/promises";
import { type Communicator, MEMORY_BYTES, type Summands } from "./communicator.ts";
import { type Blocks, type MpiLibrary, openMpiLibrary, type Request } from "./mpi_library.ts";
import { sumInPlace } from "./summing.ts";

/** What is sent at once: counts are i32, and the others' blocks of a piece need memory. */
const PIECE_BYTES = MEMORY_BYTES;

/** Larger broadcasts start when all ranks are there, so that a rank that waits for long needn't look often. */
const SMALL_BYTES = 64 << 10;

/** Milliseconds at most between two signs of life while waiting. */
const SIGN_EVERY = 100;

/** Milliseconds for which requests are tested at every turn of the event loop: for others to arrive, and to send. */
const EAGER_ARRIVAL = 1;
const EAGER_TRANSFER = 100;

/** Later tests cost a core no more than a few percent: pauses are a part of the time waited so far, up to so many ms. */
const PAUSE_PART = 1 / 20;
const LONGEST_PAUSE = 10;

export interface MpiOptions {
  /** Called every SIGN_EVERY or so while this rank waits for others; it may throw, to give up. */
  readonly onWait?: () => void;
}

export interface MpiCommunicator extends Communicator {
  /** Ends all ranks at once; mpirun's exit code is `code`. A rank that fails must call it: the others would wait for ever. */
  abort(code: number): never;
}

/** Joins the ranks that mpirun started; without mpirun, one rank. Once a process, and used by the thread that called it. */
export function openMpi(options: MpiOptions = {}): Promise<MpiCommunicator> {
  return Promise.resolve().then(() => new MpiRanks(openMpiLibrary(), options));
}

interface Waiting {
  readonly request: Request;
  readonly since: number;
  readonly eager: number;
  readonly resolve: () => void;
  readonly reject: (reason: unknown) => void;
}

/** Runs tasks one after the other, in the order they came: all ranks must start their calls in one order. */
class Lane {
  #last: Promise<void> = Promise.resolve();

  run(task: () => Promise<void>): Promise<void> {
    return this.#last = this.#last.then(task);
  }
}

class MpiRanks implements MpiCommunicator {
  readonly rank: number;
  readonly size: number;
  readonly memory = new Uint8Array(MEMORY_BYTES);
  readonly #library: MpiLibrary;
  readonly #onWait: () => void;
  /** What starts when it is called goes on one communicator, and each lane on its own. */
  readonly #calls;
  readonly #exchanges;
  readonly #gathers;
  readonly #exchangeLane = new Lane();
  readonly #gatherLane = new Lane();
  /** The others' blocks of the piece that is summed. */
  #received = new Uint8Array(0);
  #waiting: Waiting[] = [];
  #failure: unknown = null;
  #lastSign = -Infinity;

  constructor(library: MpiLibrary, { onWait = () => {} }: MpiOptions) {
    this.#library = library;
    this.#onWait = onWait;
    this.rank = library.rank;
    this.size = library.size;
    this.#calls = library.duplicate();
    this.#exchanges = library.duplicate();
    this.#gathers = library.duplicate();
  }

  async allReduce(data: Summands): Promise<void> {
    if (this.size === 1 || data.length === 0) return;
    const steps = [this.#arrival()];
    const length = PIECE_BYTES / data.BYTES_PER_ELEMENT;
    for (let from = 0; from < data.length; from += length) {
      const piece = data.subarray(from, from + length);
      const blocks = blocksOf(piece, this.size);
      const summed = this.#exchangeLane.run(async () => {
        await steps[0];
        await this.#sum(piece, blocks);
      });
      const gathered = this.#gatherLane.run(async () => {
        await summed;
        await this.#done(() => this.#library.gather(this.#gathers, blocks), EAGER_TRANSFER);
      });
      steps.push(summed, gathered);
    }
    await Promise.all(steps);
  }

  /** Sums this rank's block of a piece, in place. */
  async #sum(piece: Summands, blocks: Blocks): Promise<void> {
    const { rank, size } = this;
    const [start, bytes] = [blocks.starts[rank], blocks.counts[rank]];
    const others = (value: (other: number) => number) =>
      Int32Array.from({ length: size }, (_, other) => other === rank ? 0 : value(other));
    if (this.#received.length < size * bytes) this.#received = new Uint8Array(size * bytes);
    const into = {
      data: this.#received,
      counts: others(() => bytes),
      starts: Int32Array.from({ length: size }, (_, other) => other * bytes),
    };
    const from = { ...blocks, counts: others((other) => blocks.counts[other]) };
    await this.#done(() => this.#library.exchange(this.#exchanges, from, into), EAGER_TRANSFER);
    if (bytes === 0) return;
    const { data, starts } = into;
    sumInPlace(Array.from(starts, (at, other) => {
      return other === rank ? viewLike(piece, blocks.data, start, bytes) : viewLike(piece, data, at, bytes);
    }));
  }

  async broadcast(data: Uint8Array, root: number): Promise<void> {
    if (this.size === 1 || data.length === 0) return;
    const bytes = bytesOf(data);
    if (bytes.length <= SMALL_BYTES) {
      return await this.#done(() => this.#library.broadcast(this.#calls, bytes, root), EAGER_ARRIVAL);
    }
    const steps = [this.#arrival()];
    for (let from = 0; from < bytes.length; from += PIECE_BYTES) {
      const piece = bytes.subarray(from, from + PIECE_BYTES);
      steps.push(this.#exchangeLane.run(async () => {
        await steps[0];
        await this.#done(() => this.#library.broadcast(this.#exchanges, piece, root), EAGER_TRANSFER);
      }));
    }
    await Promise.all(steps);
  }

  async barrier(): Promise<void> {
    if (this.size > 1) await this.#arrival();
  }

  #arrival(): Promise<void> {
    return this.#done(() => this.#library.barrier(this.#calls), EAGER_ARRIVAL);
  }

  /** Starts a request at once; resolves when it is done. */
  #done(start: () => Request, eager: number): Promise<void> {
    if (this.#failure !== null) return Promise.reject(this.#failure);
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    try {
      this.#waiting.push({ request: start(), since: performance.now(), eager, resolve, reject });
    } catch (error) {
      return Promise.reject(error);
    }
    if (this.#waiting.length === 1) this.#test();
    return promise;
  }

  /** Tests until nothing is waited for. */
  async #test(): Promise<void> {
    while (this.#waiting.length > 0) {
      try {
        this.#settle();
        this.#giveSign();
      } catch (error) {
        this.#fail(error);
        return;
      }
      await pause(this.#waiting);
    }
  }

  #settle(): void {
    const done = this.#waiting.filter(({ request }) => this.#library.test(request));
    this.#waiting = this.#waiting.filter((waiting) => !done.includes(waiting));
    for (const { resolve } of done) resolve();
  }

  #giveSign(): void {
    const now = performance.now();
    if (now - this.#lastSign < SIGN_EVERY) return;
    this.#lastSign = now;
    this.#onWait();
  }

  #fail(error: unknown): void {
    this.#failure = error;
    for (const { reject } of this.#waiting.splice(0)) reject(error);
  }

  abort(code: number): never {
    return this.#library.abort(code);
  }

  /** Waits for all ranks to end. After a failure it does not: that would be for ever. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#failure !== null) return;
    await this.barrier();
    this.#failure = new Error("Cannot use MPI: this rank has left it");
    this.#library.finalize();
  }
}

/** Until the next test: the youngest request says how soon. */
async function pause(waiting: readonly Waiting[]): Promise<void> {
  const now = performance.now();
  if (waiting.length === 0 || waiting.some(({ since, eager }) => now - since < eager)) await setImmediate();
  else {
    const waited = Math.min(...waiting.map(({ since }) => now - since));
    await setTimeout(Math.min(LONGEST_PAUSE, Math.ceil(waited * PAUSE_PART)));
  }
}

/** A piece's equal blocks, one a rank, the last ones shorter; borders are whole cache lines. */
function blocksOf(piece: Summands, ranks: number): Blocks {
  const data = bytesOf(piece);
  const block = Math.ceil(data.length / ranks / 64) * 64;
  const starts = Int32Array.from({ length: ranks }, (_, rank) => Math.min(data.length, rank * block));
  const counts = starts.map((start) => Math.min(data.length, start + block) - start);
  return { data, counts, starts };
}

/** `buffer` is asked for first: that moves a small array to memory that stays where it is. */
function bytesOf({ buffer, byteOffset, byteLength }: Summands | Uint8Array): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength);
}

function viewLike(values: Summands, { buffer, byteOffset }: Uint8Array, start: number, bytes: number): Summands {
  return values instanceof Float32Array
    ? new Float32Array(buffer, byteOffset + start, bytes / 4)
    : new Uint16Array(buffer, byteOffset + start, bytes / 2);
}
