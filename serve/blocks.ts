/**
 * Blocks of a key/value cache: who holds each, and which hold a prefix that others may share. It knows no sequence and no
 * GPU.
 *
 * Only full blocks are shared, and a full block is never written again, so no write ever meets a block that two hold.
 * What a prompt leaves in a block that isn't full, its tail, is copied by those who have the same prompt.
 */
import { createHash } from "node:crypto";

/** Names a full block by its tokens and all before them. */
export function blockKey(before: string, tokens: readonly number[]): string {
  return createHash("sha256").update(before).update(Uint32Array.from(tokens)).digest("base64");
}

/** A fixed number of blocks. Freed ones that were published stay findable until they are needed, least recently used first. */
export class Blocks {
  readonly #references: Uint32Array;
  readonly #keys: (string | undefined)[];
  readonly #published = new Map<string, number>();
  /** Held blocks that begin with the tail of a prompt. */
  readonly #tails = new Map<string, number>();
  /** Held by nobody and without a key. */
  readonly #empty: number[];
  /** Held by nobody but published; the least recently used comes first. */
  readonly #idle = new Set<number>();

  /** @throws RangeError for less than one block or one position a block. */
  constructor(readonly count: number, readonly size: number) {
    if (!(Number.isInteger(count) && count >= 1 && Number.isInteger(size) && size >= 1)) {
      throw new RangeError(`Cannot make ${count} blocks of ${size} positions: want whole numbers from 1 on`);
    }
    this.#references = new Uint32Array(count);
    this.#keys = new Array(count).fill(undefined);
    this.#empty = Array.from({ length: count }, (_, i) => count - 1 - i);
  }

  /** Blocks that nobody holds. */
  get free(): number {
    return this.#empty.length + this.#idle.size;
  }

  /** Blocks that can be found by a key, held or not. */
  get findable(): number {
    return this.#published.size;
  }

  /** Blocks that hold so many positions. */
  needed(positions: number): number {
    return Math.ceil(positions / this.size);
  }

  /** How many hold a block. */
  references(block: number): number {
    return this.#references[block];
  }

  /** A block to write to, held once; undefined where none is free. */
  take(): number | undefined {
    const block = this.#empty.pop() ?? this.#evict();
    if (block !== undefined) this.#references[block] = 1;
    return block;
  }

  /** Holds the block published under a key; undefined where there is none. */
  share(key: string): number | undefined {
    const block = this.#published.get(key);
    if (block === undefined) return undefined;
    this.#idle.delete(block);
    this.#references[block]++;
    return block;
  }

  /** Makes a full block findable. A key that is known keeps its block. */
  publish(block: number, key: string): void {
    this.#requireHeld(block, "publish");
    if (this.#published.has(key) || this.#keys[block] !== undefined) return;
    this.#published.set(key, block);
    this.#keys[block] = key;
  }

  /** Makes a tail findable for as long as its block is held. What was written to a block's beginning is not written again. */
  publishTail(block: number, key: string): void {
    this.#requireHeld(block, "publish");
    if (!this.#tails.has(key)) this.#tails.set(key, block);
  }

  /** The block that begins with a tail; undefined where there is none. */
  tail(key: string): number | undefined {
    return this.#tails.get(key);
  }

  /** Ends one hold of a block. */
  release(block: number): void {
    this.#requireHeld(block, "release");
    if (--this.#references[block] > 0) return;
    for (const [key, held] of this.#tails) if (held === block) this.#tails.delete(key);
    if (this.#keys[block] === undefined) this.#empty.push(block);
    else this.#idle.add(block);
  }

  /** Forgets all that was published, as when their contents are lost. */
  forget(): void {
    this.#published.clear();
    this.#tails.clear();
    this.#keys.fill(undefined);
    this.#empty.push(...this.#idle);
    this.#idle.clear();
  }

  #evict(): number | undefined {
    const [block] = this.#idle;
    if (block === undefined) return undefined;
    this.#idle.delete(block);
    this.#published.delete(this.#keys[block]!);
    this.#keys[block] = undefined;
    return block;
  }

  #requireHeld(block: number, name: string): void {
    if (this.#references[block] > 0) return;
    throw new RangeError(`Cannot ${name} block ${block} of ${this.count}: nobody holds it`);
  }
}
