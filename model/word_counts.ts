/** Counts the different words of a corpus, held as flat bytes. It knows no tokens. */

/** Open addressing over an arena of bytes; at most half full. */
export class WordCounts {
  #slots = new Int32Array(1 << 16).fill(-1);
  #hashes = new Int32Array(1 << 15);
  #ends = new Uint32Array(1 << 15);
  #counts = new Float64Array(1 << 15);
  #arena = new Uint8Array(1 << 20);
  #size = 0;

  /** How many different words there are. */
  get size(): number {
    return this.#size;
  }

  count(word: number): number {
    return this.#counts[word];
  }

  /** The bytes of a word; words are numbered in the order in which they were first seen. */
  bytes(word: number): Uint8Array {
    return this.#arena.subarray(this.#start(word), this.#ends[word]);
  }

  /** Counts the word bytes[from..to). */
  add(bytes: Uint8Array, from: number, to: number): void {
    let hash = 0x811c9dc5;
    for (let i = from; i < to; i++) hash = Math.imul(hash ^ bytes[i], 0x01000193); // FNV-1a
    hash ^= hash >>> 15;
    const mask = this.#slots.length - 1;
    let slot = hash & mask;
    for (let word = this.#slots[slot]; word >= 0; word = this.#slots[slot]) {
      if (this.#hashes[word] === hash && this.#equals(word, bytes, from, to)) {
        this.#counts[word]++;
        return;
      }
      slot = (slot + 1) & mask;
    }
    this.#slots[slot] = this.#size;
    this.#append(hash, bytes, from, to);
  }

  #start(word: number): number {
    return word === 0 ? 0 : this.#ends[word - 1];
  }

  #equals(word: number, bytes: Uint8Array, from: number, to: number): boolean {
    const start = this.#start(word);
    if (this.#ends[word] - start !== to - from) return false;
    const offset = start - from;
    for (let i = from; i < to; i++) if (this.#arena[offset + i] !== bytes[i]) return false;
    return true;
  }

  #append(hash: number, bytes: Uint8Array, from: number, to: number): void {
    const word = this.#size++;
    const start = this.#start(word);
    if (start + to - from > this.#arena.length) {
      const arena = new Uint8Array(2 * (this.#arena.length + to - from));
      arena.set(this.#arena);
      this.#arena = arena;
    }
    this.#arena.set(bytes.subarray(from, to), start);
    this.#ends[word] = start + to - from;
    this.#hashes[word] = hash;
    this.#counts[word] = 1;
    if (2 * this.#size >= this.#slots.length) this.#grow();
  }

  #grow(): void {
    const slots = new Int32Array(2 * this.#slots.length).fill(-1);
    const mask = slots.length - 1;
    for (let word = 0; word < this.#size; word++) {
      let slot = this.#hashes[word] & mask;
      while (slots[slot] >= 0) slot = (slot + 1) & mask;
      slots[slot] = word;
    }
    this.#slots = slots;
    const grown = <T extends Int32Array | Uint32Array | Float64Array>(to: T, from: T): T => (to.set(from), to);
    this.#hashes = grown(new Int32Array(slots.length / 2), this.#hashes);
    this.#ends = grown(new Uint32Array(slots.length / 2), this.#ends);
    this.#counts = grown(new Float64Array(slots.length / 2), this.#counts);
  }
}
