/** A hash table from pairs of token ids to two numbers, flat in one array. It knows no merges and no counts. */

const STRIDE = 4;

function slotHash(left: number, right: number): number {
  const mixed = Math.imul(left, 0x9e3779b1) ^ Math.imul(right, 0x85ebca6b);
  return Math.imul(mixed ^ (mixed >>> 15), 0x2c1b3c6d) >>> 7;
}

/** Open addressing, at most half full. A found slot is an index for `first` and `second`, valid until the next `set`. */
export class PairTable {
  #slots: Int32Array; // left, right, first, second; left is -1 in a free slot
  #mask: number;
  #size = 0;

  constructor(expected = 256) {
    let capacity = 1024;
    while (capacity < 2 * expected) capacity *= 2;
    this.#slots = new Int32Array(capacity * STRIDE).fill(-1);
    this.#mask = capacity - 1;
  }

  get size(): number {
    return this.#size;
  }

  /** The slot of a pair, or -1. */
  find(left: number, right: number): number {
    const slots = this.#slots;
    const mask = this.#mask;
    for (let slot = slotHash(left, right) & mask;; slot = (slot + 1) & mask) {
      const at = slot * STRIDE;
      if (slots[at] === left && slots[at + 1] === right) return at;
      if (slots[at] === -1) return -1;
    }
  }

  first(slot: number): number {
    return this.#slots[slot + 2];
  }

  second(slot: number): number {
    return this.#slots[slot + 3];
  }

  /** Stores a pair's numbers, in place of those it had. */
  set(left: number, right: number, first: number, second = 0): void {
    let at = this.find(left, right);
    if (at < 0) {
      if (2 * (this.#size + 1) > this.#mask) this.#grow();
      at = this.#free(left, right);
      this.#size++;
    }
    this.#slots[at] = left;
    this.#slots[at + 1] = right;
    this.#slots[at + 2] = first;
    this.#slots[at + 3] = second;
  }

  #free(left: number, right: number): number {
    let slot = slotHash(left, right) & this.#mask;
    while (this.#slots[slot * STRIDE] !== -1) slot = (slot + 1) & this.#mask;
    return slot * STRIDE;
  }

  #grow(): void {
    const old = this.#slots;
    this.#slots = new Int32Array(2 * old.length).fill(-1);
    this.#mask = this.#slots.length / STRIDE - 1;
    for (let at = 0; at < old.length; at += STRIDE) {
      if (old[at] !== -1) this.#slots.set(old.subarray(at, at + STRIDE), this.#free(old[at], old[at + 1]));
    }
  }
}
