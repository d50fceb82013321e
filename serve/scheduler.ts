/**
 * Who runs in the next step: one flat batch of prompt chunks and single tokens within a budget of rows. It knows no model
 * and no GPU.
 *
 * Requests are admitted in the order they came; those that run are all older than those that wait. Every running one that
 * decodes gets its row in every step, and prompts divide what is left, so that no long prompt holds up a short one. Where
 * no block is free the youngest gives its own back and waits, to be computed again.
 */
import type { Blocks } from "./blocks.ts";
import type { BlockCopy, Sequence } from "./sequence.ts";

export interface SchedulerLimits {
  /** Sequences that run at once. */
  readonly maxSequences: number;
  /** Rows of one step; at least a row for each sequence. */
  readonly maxBatchedTokens: number;
}

/** Tokens `from` to `from + count` of a sequence, which are computed in one step. */
export interface Chunk<S extends Sequence = Sequence> {
  readonly sequence: S;
  readonly from: number;
  readonly count: number;
  /** Whether it ends with the last known token, so that the next one is chosen from it. */
  readonly last: boolean;
  /** To be done before the step's rows. */
  readonly copy?: BlockCopy;
}

/** The scheduler; what it schedules counts as computed, so steps run in the order in which they were scheduled. */
export class Scheduler<S extends Sequence = Sequence> {
  /** Oldest first. */
  readonly #running: S[] = [];
  /** Oldest first. */
  readonly #waiting: S[] = [];
  /** Of the step that is being scheduled. */
  readonly #copies = new Map<S, BlockCopy>();
  #preemptions = 0;
  #reused = 0;

  /** @throws RangeError for a budget with less than a row a sequence. */
  constructor(readonly blocks: Blocks, readonly limits: SchedulerLimits) {
    const { maxSequences, maxBatchedTokens } = limits;
    const right = Number.isInteger(maxSequences) && Number.isInteger(maxBatchedTokens) && maxSequences >= 1 &&
      maxBatchedTokens >= maxSequences;
    if (right) return;
    throw new RangeError(
      `Cannot schedule ${maxSequences} sequences in ${maxBatchedTokens} rows: want at least a row for each sequence`,
    );
  }

  get running(): readonly S[] {
    return this.#running;
  }

  get waiting(): readonly S[] {
    return this.#waiting;
  }

  /** How often a sequence gave its blocks back to be computed again. */
  get preemptions(): number {
    return this.#preemptions;
  }

  /** Tokens that were not computed because their blocks were known. */
  get reused(): number {
    return this.#reused;
  }

  /**
   * Puts a sequence last in the queue.
   *
   * @param longest tokens it may grow to.
   * @throws RangeError where all blocks together don't hold them.
   */
  add(sequence: S, longest: number): void {
    const needed = this.blocks.needed(longest);
    if (needed > this.blocks.count) {
      throw new RangeError(
        `Cannot hold ${longest} tokens: they need ${needed} blocks of ${this.blocks.size}, there are ${this.blocks.count}`,
      );
    }
    this.#waiting.push(sequence);
  }

  /** Takes a sequence out, finished or not; its blocks are free at once. */
  remove(sequence: S): void {
    for (const list of [this.#running, this.#waiting]) {
      const index = list.indexOf(sequence);
      if (index >= 0) list.splice(index, 1);
    }
    sequence.release(this.blocks);
  }

  /** The next step. It is empty only where nothing runs and nothing waits, or the last step's tokens are still to be pushed. */
  schedule(): Chunk<S>[] {
    const chunks: Chunk<S>[] = [];
    const before = this.#preemptions;
    this.#copies.clear();
    for (const sequence of this.#running) sequence.publishTail(this.blocks); // of steps that have run
    for (const sequence of this.#running) this.#adopt(sequence);
    const decoding = this.#running.filter(({ pending }) => pending === 1).length;
    const admissible = this.#admissible();
    const followers = this.#followers([...this.#running, ...admissible]);
    const prompts = [...this.#running.filter(({ pending }) => pending > 1), ...admissible]
      .filter((sequence) => !followers.has(sequence));
    const shares = divide(
      prompts.map(({ pending }) => pending),
      this.limits.maxBatchedTokens - decoding,
      this.blocks.size,
    );
    const shareOf = (sequence: S) => sequence.pending === 1 ? 1 : shares[prompts.indexOf(sequence)] ?? 0;
    // Preemption takes from the end of the list, so who is scheduled stays scheduled.
    for (let i = 0; i < this.#running.length; i++) {
      this.#give(this.#running[i], shareOf(this.#running[i]), chunks);
    }
    if (this.#preemptions > before) return chunks; // who lost its blocks is first in the queue now
    for (const sequence of admissible) {
      const share = shares[prompts.indexOf(sequence)] ?? 0;
      if ((share === 0 && !followers.has(sequence)) || !this.#admit(sequence)) break;
      this.#give(sequence, share, chunks);
    }
    return chunks;
  }

  /** Those whose prompt an older one is about to compute: they wait for what they will copy. */
  #followers(sequences: readonly S[]): ReadonlySet<S> {
    const leading = new Set<string>();
    return new Set(sequences.filter((sequence) => {
      const key = sequence.beginning ? sequence.tailKey(this.blocks.size) : undefined;
      if (key === undefined || sequence.pending === 1) return false;
      if (leading.has(key)) return this.blocks.tail(key) === undefined;
      leading.add(key);
      return false;
    }));
  }

  /** Holds known blocks of a sequence's tokens, and a copy of its prompt's tail. */
  #adopt(sequence: S): void {
    this.#reused += sequence.adopt(this.blocks);
    const copy = sequence.adoptTail(this.blocks);
    if (copy === undefined) return;
    this.#reused += copy.positions;
    this.#copies.set(sequence, copy);
  }

  /**
   * Several steps in a row of the one sequence there is, where it is alone and its last token was chosen just now: makes
   * room for up to `count` more tokens. Undefined where others run or wait. `advance` it by what came.
   */
  scheduleAlone(count: number): Chunk<S> | undefined {
    const [sequence] = this.#running;
    if (this.#running.length !== 1 || this.#waiting.length > 0 || sequence.pending !== 1) return undefined;
    const from = sequence.computed;
    if (!sequence.extend(this.blocks, from + count)) return undefined;
    return { sequence, from, count, last: true };
  }

  /** Waiting sequences that there is a place for, as far as places go. */
  #admissible(): readonly S[] {
    return this.#waiting.slice(0, this.limits.maxSequences - this.#running.length);
  }

  /** Lets the first one in where the blocks hold all its tokens, besides those that running ones are still to take. */
  #admit(sequence: S): boolean {
    const reused = sequence.adopt(this.blocks);
    const missing = (one: S) => Math.max(0, this.blocks.needed(one.tokens.length) - one.blocks.length);
    const outstanding = this.#running.reduce((sum, one) => sum + missing(one), 0);
    if (missing(sequence) + outstanding > this.blocks.free) {
      sequence.release(this.blocks);
      return false;
    }
    this.#reused += reused;
    this.#waiting.shift();
    this.#running.push(sequence);
    return true;
  }

  /** Schedules up to `share` tokens of a running sequence; none where it had to give its blocks back. */
  #give(sequence: S, share: number, chunks: Chunk<S>[]): void {
    this.#adopt(sequence);
    const from = sequence.computed;
    const count = this.#whole(from, Math.min(share, sequence.pending), sequence);
    if (count === 0) return;
    while (!sequence.extend(this.blocks, from + count)) {
      const youngest = this.#running.at(-1)!;
      this.#preempt(youngest);
      if (youngest === sequence) return;
    }
    sequence.advance(this.blocks, count);
    chunks.push({ sequence, from, count, last: sequence.pending === 0, copy: this.#copies.get(sequence) });
  }

  /** Chunks end where blocks do, so that others can go on from them, but where that would leave nothing. */
  #whole(from: number, count: number, { tokens }: S): number {
    const { size } = this.blocks;
    const end = from + count;
    if (end === tokens.length) return count;
    const aligned = Math.floor(end / size) * size;
    return aligned > from ? aligned - from : count;
  }

  #preempt(sequence: S): void {
    this.#running.pop();
    this.#waiting.unshift(sequence);
    sequence.release(this.blocks);
    this.#preemptions++;
  }
}

/**
 * Divides rows evenly among prompts, the oldest first, that want so many each: what one doesn't want goes to the others,
 * and rather than less than a block the youngest get nothing.
 */
export function divide(wanted: readonly number[], rows: number, block: number): number[] {
  const served = Math.min(wanted.length, Math.max(1, Math.floor(rows / block)));
  const shares = wanted.map(() => 0);
  let left = rows;
  const modest = shares.map((_, i) => i).slice(0, served).sort((a, b) => wanted[a] - wanted[b]);
  modest.forEach((i, done) => {
    shares[i] = Math.min(wanted[i], Math.floor(left / (served - done)));
    left -= shares[i];
  });
  return shares;
}
