/** Tokens of one request and the blocks that cache their keys and values. It knows neither who schedules it nor a GPU. */
import { blockKey, type Blocks } from "./blocks.ts";

export interface SequenceOptions {
  /** Whether every row's output is wanted, so that none may be left out because its block is known. Default: no. */
  readonly everyRow?: boolean;
}

/** The first positions of one block are to be copied to another. */
export interface BlockCopy {
  readonly from: number;
  readonly to: number;
  readonly positions: number;
}

/** A request's tokens. Of them the first `computed` stand in its blocks, or will when the work scheduled so far is done. */
export class Sequence {
  readonly tokens: number[];
  readonly blocks: number[] = [];
  readonly promptLength: number;
  readonly everyRow: boolean;
  /** Keys of full blocks, as far as they were asked for. */
  readonly #keys: string[] = [];
  #tailKey: string | undefined;
  #computed = 0;
  #published = 0;

  constructor(prompt: Iterable<number>, { everyRow = false }: SequenceOptions = {}) {
    this.tokens = [...prompt];
    this.promptLength = this.tokens.length;
    this.everyRow = everyRow;
    if (this.promptLength === 0) throw new RangeError("Cannot schedule an empty prompt: give at least one token");
  }

  get computed(): number {
    return this.#computed;
  }

  /** Tokens whose keys and values are still to be computed: one where the last was chosen just now. */
  get pending(): number {
    return this.tokens.length - this.#computed;
  }

  push(token: number): void {
    this.tokens.push(token);
  }

  /** Holds known blocks of the tokens that follow the computed ones, but for the last token's. Returns tokens won. */
  adopt(blocks: Blocks): number {
    const before = this.#computed;
    if (this.everyRow || before % blocks.size !== 0) return 0;
    for (let index = before / blocks.size; (index + 1) * blocks.size < this.tokens.length; index++) {
      const block = blocks.share(this.#key(index, blocks.size));
      if (block === undefined) break;
      this.blocks.push(block);
      this.#computed += blocks.size;
      this.#published++;
    }
    return this.#computed - before;
  }

  /** Whether it has all of its prompt still or partly to compute, and no token of its own yet. */
  get beginning(): boolean {
    return this.tokens.length === this.promptLength && this.#computed < this.promptLength;
  }

  /** Names what the prompt leaves in its last block, but for its last token; undefined where that is nothing. */
  tailKey(size: number): string | undefined {
    const full = Math.floor((this.promptLength - 1) / size);
    if (this.everyRow || full * size === this.promptLength - 1) return undefined;
    return this.#tailKey ??= blockKey(
      full === 0 ? "" : this.#key(full - 1, size),
      this.tokens.slice(full * size, this.promptLength - 1),
    );
  }

  /** Lets others find the tail, once it is computed. */
  publishTail(blocks: Blocks): void {
    const key = this.tailKey(blocks.size);
    if (key === undefined || this.#computed < this.promptLength) return;
    blocks.publishTail(this.blocks[Math.floor((this.promptLength - 1) / blocks.size)], key);
  }

  /** Takes a block for a copy of a known tail, where that is all that is missing but for the last token, and counts it as computed. */
  adoptTail(blocks: Blocks): BlockCopy | undefined {
    const key = this.tailKey(blocks.size);
    const positions = this.promptLength - 1 - this.#computed;
    if (!this.beginning || key === undefined || this.#computed % blocks.size !== 0 || positions >= blocks.size) return;
    const from = blocks.tail(key);
    if (from === undefined) return undefined;
    const to = blocks.take();
    if (to === undefined) return undefined;
    this.blocks.push(to);
    this.#computed += positions;
    return { from, to, positions };
  }

  /** Takes blocks until they hold so many positions; false where none is free. */
  extend(blocks: Blocks, positions: number): boolean {
    while (this.blocks.length < blocks.needed(positions)) {
      const block = blocks.take();
      if (block === undefined) return false;
      this.blocks.push(block);
    }
    return true;
  }

  /** Counts tokens as computed, and publishes the blocks they fill. */
  advance(blocks: Blocks, count: number): void {
    this.#computed += count;
    for (; (this.#published + 1) * blocks.size <= this.#computed; this.#published++) {
      blocks.publish(this.blocks[this.#published], this.#key(this.#published, blocks.size));
    }
  }

  /** Gives all blocks back: what was computed is lost, but for what others share. */
  release(blocks: Blocks): void {
    // The end of a prefix is of no use without its beginning: it goes first.
    for (const block of this.blocks.splice(0).reverse()) blocks.release(block);
    this.#computed = 0;
    this.#published = 0;
  }

  #key(index: number, size: number): string {
    for (let i = this.#keys.length; i <= index; i++) {
      this.#keys.push(blockKey(this.#keys[i - 1] ?? "", this.tokens.slice(i * size, (i + 1) * size)));
    }
    return this.#keys[index];
  }
}
