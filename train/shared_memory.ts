/**
 * Ranks of one machine over memory that all of them see: a barrier, sums in rank order, broadcasts. How the memory came
 * about, and how one sleeps on it, is a SharedRegion's; this knows no thread, no process and no gradient.
 */
import { Abandoned, type Communicator, MEMORY_BYTES, type Summands } from "./communicator.ts";
import { sumInPlace } from "./summing.ts";

/** Memory that all ranks of a machine see, with words (i32) to sleep on. */
export interface SharedRegion extends Disposable {
  readonly buffer: ArrayBufferLike;
  /** Sleeps while a word has this value, so many milliseconds at most; may wake early. */
  wait(word: number, value: number, milliseconds: number): void;
  /** Wakes all that sleep on a word. */
  wake(word: number): void;
}

/** Control words, each in a cache line of its own. */
const ARRIVED = 0;
const GENERATION = 16;
const ABANDONED = 32;
const STOP = 48;
const CONTROL_BYTES = 256;

/** What arrays outside the ranks' memories go through, a piece at a time. */
const STAGING_BYTES = 1 << 20;

/** What a rank says it calls, by turns in two words: one may be ahead of another by one barrier. */
const TAGS_BYTES = 64;

const perRank = TAGS_BYTES + STAGING_BYTES + MEMORY_BYTES;

/** Milliseconds that a rank sleeps at once: it looks after its heart in between. */
const NAP = 100;

/** Looks at the barrier before sleeping on it: the others are often a moment behind. */
const SPINS = 2000;

/** Bytes of a region for so many ranks. */
export function regionBytes(ranks: number): number {
  return CONTROL_BYTES + ranks * perRank;
}

/** A region whose ranks are threads of one process. */
export function threadRegion(buffer: SharedArrayBuffer): SharedRegion {
  const words = new Int32Array(buffer, 0, CONTROL_BYTES / 4);
  return {
    buffer,
    wait: (word, value, milliseconds) => void Atomics.wait(words, word, value, milliseconds),
    wake: (word) => void Atomics.notify(words, word),
    [Symbol.dispose]: () => {},
  };
}

/** Makes all that wait for others, now or later, give up. */
export function abandon(region: SharedRegion): void {
  Atomics.store(wordsOf(region), ABANDONED, 1);
  region.wake(GENERATION);
}

/** Asks for the run's end, on behalf of whoever watches the ranks. */
export function requestStop(region: SharedRegion): void {
  Atomics.store(wordsOf(region), STOP, 1);
}

export function stopRequested(region: SharedRegion): boolean {
  return Atomics.load(wordsOf(region), STOP) === 1;
}

export interface SharedRank {
  readonly rank: number;
  readonly size: number;
  /** Called every NAP or so while it waits for others; it may throw, to give up. */
  readonly onWait?: () => void;
}

/** A rank's communicator over a region of `regionBytes(size)` zeroed bytes. */
export function sharedCommunicator(region: SharedRegion, options: SharedRank): Communicator {
  return new SharedCommunicator(region, options);
}

class SharedCommunicator implements Communicator {
  readonly rank: number;
  readonly size: number;
  readonly memory: Uint8Array;
  readonly #words: Int32Array;

  constructor(readonly region: SharedRegion, readonly options: SharedRank) {
    this.rank = options.rank;
    this.size = options.size;
    this.memory = this.#memoryOf(this.rank);
    this.#words = wordsOf(region);
  }

  allReduce(data: Summands): Promise<void> {
    return attempt(() => {
      const at = data.byteOffset - this.memory.byteOffset;
      if (data.buffer === this.region.buffer && at >= 0 && at + data.byteLength <= MEMORY_BYTES) {
        return this.#sum((rank) => sliceOf(this.#memoryOf(rank), at, data));
      }
      const step = STAGING_BYTES / data.BYTES_PER_ELEMENT;
      for (let from = 0; from < data.length; from += step) {
        const piece = data.subarray(from, from + step);
        const staged = (rank: number) => sliceOf(this.#stagingOf(rank), 0, piece);
        staged(this.rank).set(piece);
        this.#sum(staged);
        piece.set(staged(this.rank));
      }
    });
  }

  /** Each rank sums its part of all arrays and writes it to all. */
  #sum(arrayOf: (rank: number) => Summands): void {
    this.#barrier("sum", arrayOf(this.rank).byteLength);
    const arrays = Array.from({ length: this.size }, (_, rank) => arrayOf(rank));
    const { length } = arrays[0];
    // Parts begin at cache lines, so that no two ranks write to one.
    const border = (rank: number) => rank === this.size ? length : Math.floor(rank * length / this.size / 64) * 64;
    const [from, to] = [border(this.rank), border(this.rank + 1)];
    if (to > from) sumInPlace(arrays.map((array) => array.subarray(from, to)));
    this.#barrier("sum", arrays[0].byteLength);
  }

  broadcast(data: Uint8Array, root: number): Promise<void> {
    return attempt(() => {
      for (let from = 0; from < data.length; from += STAGING_BYTES) {
        const piece = data.subarray(from, from + STAGING_BYTES);
        const staged = this.#stagingOf(root).subarray(0, piece.length);
        if (this.rank === root) staged.set(piece);
        this.#barrier("broadcast", piece.length);
        if (this.rank !== root) piece.set(staged);
        this.#barrier("broadcast", piece.length);
      }
    });
  }

  barrier(): Promise<void> {
    return attempt(() => this.#barrier("barrier"));
  }

  /**
   * The last to arrive opens the next generation.
   *
   * @throws Error where another rank came with another call: all that follows would be garbage.
   */
  #barrier(call: keyof typeof CALLS, size = 0): void {
    const words = this.#words;
    const generation = Atomics.load(words, GENERATION);
    const tag = CALLS[call] + size;
    Atomics.store(this.#tagsOf(this.rank), generation & 1, tag);
    this.#meet(generation);
    for (let rank = 0; rank < this.size; rank++) {
      const other = Atomics.load(this.#tagsOf(rank), generation & 1);
      if (other === tag) continue;
      throw new Error(
        `Ranks are out of step: rank ${rank} came with ${nameOf(other)}, rank ${this.rank} with ${nameOf(tag)}`,
      );
    }
  }

  #meet(generation: number): void {
    const { region, size, options: { onWait } } = this;
    const words = this.#words;
    if (Atomics.add(words, ARRIVED, 1) === size - 1) {
      Atomics.store(words, ARRIVED, 0);
      Atomics.add(words, GENERATION, 1);
      region.wake(GENERATION);
    }
    for (let spins = 0; Atomics.load(words, GENERATION) === generation; spins++) {
      if (Atomics.load(words, ABANDONED) === 1) throw new Abandoned();
      if (spins < SPINS) continue;
      region.wait(GENERATION, generation, NAP);
      onWait?.();
    }
  }

  #tagsOf(rank: number): Int32Array {
    return new Int32Array(this.region.buffer, CONTROL_BYTES + rank * perRank, 2);
  }

  #stagingOf(rank: number): Uint8Array {
    return new Uint8Array(this.region.buffer, CONTROL_BYTES + rank * perRank + TAGS_BYTES, STAGING_BYTES);
  }

  #memoryOf(rank: number): Uint8Array {
    const start = CONTROL_BYTES + rank * perRank + TAGS_BYTES + STAGING_BYTES;
    return new Uint8Array(this.region.buffer, start, MEMORY_BYTES);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve();
  }
}

/** Names of calls in a tag's upper bits, above any size. */
const CALLS = { barrier: 1 << 28, sum: 2 << 28, broadcast: 3 << 28 } as const;

function nameOf(tag: number): string {
  const [call, first] = Object.entries(CALLS).findLast(([, first]) => tag >= first) ?? ["nothing", 0];
  return `${call} of ${tag - first} bytes`;
}

function wordsOf({ buffer }: SharedRegion): Int32Array {
  return new Int32Array(buffer, 0, CONTROL_BYTES / 4);
}

/** The place of `like` in a rank's memory. */
function sliceOf({ buffer, byteOffset }: Uint8Array, at: number, like: Summands): Summands {
  const { length } = like;
  return like instanceof Float32Array
    ? new Float32Array(buffer, byteOffset + at, length)
    : new Uint16Array(buffer, byteOffset + at, length);
}

/** What is done at once, as a promise. */
function attempt(work: () => void): Promise<void> {
  try {
    return Promise.resolve(work());
  } catch (error) {
    return Promise.reject(error);
  }
}
