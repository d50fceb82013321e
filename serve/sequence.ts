/** Tokens of one request and the blocks that cache their keys and values. It knows neither who schedules it nor a GPU. */
import { blockKey, type Blocks } from "./blocks.ts";

export interface SequenceOptions {
  /** Whether every row's output is wanted, so that none may be left out because its block is known. Default: no. */
  readonly everyRow?: boolean;
}

/** A request's tokens. Of them the first `computed` stand in its blocks, or will when the work scheduled so far is done. */
export class Sequence {
  readonly tokens: number[];
  readonly blocks: number[] = [];
  readonly promptLength: number;
  readonly everyRow: boolean;
  /** Keys of full blocks, as far as they were asked for. */
  readonly #keys: string[] = [];
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
