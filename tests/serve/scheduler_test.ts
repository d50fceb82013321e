/**
 * The scheduler by simulation: a cache that holds, for each slot, the text that led to it, so that a block overwritten,
 * shared wrongly or not computed is seen by the first row that reads it.
 */
import assert from "node:assert/strict";
import fc from "fast-check";
import { Blocks } from "../../serve/blocks.ts";
import { type Chunk, divide, Scheduler, type SchedulerLimits } from "../../serve/scheduler.ts";
import { Sequence } from "../../serve/sequence.ts";

interface Wish {
  readonly prompt: readonly number[];
  readonly maxTokens: number;
  /** Step in which it comes. */
  readonly arrival: number;
  /** Tokens after which its reader is gone. */
  readonly abortAfter?: number;
  readonly everyRow?: boolean;
}

interface World extends SchedulerLimits {
  readonly blockCount: number;
  readonly blockSize: number;
}

/** What stands in for a model: the next token depends on every token before it. */
function following(tokens: readonly number[]): number {
  return tokens.reduce((sum, token) => (Math.imul(sum, 31) + token + 7) >>> 0, 1) % 5;
}

class Simulation {
  readonly blocks: Blocks;
  readonly scheduler: Scheduler;
  readonly cache: string[];
  readonly wishes = new Map<Sequence, Wish>();
  readonly answers = new Map<Wish, number[]>();
  readonly admitted: Wish[] = [];
  readonly rowsOf = new Map<Sequence, number>();
  rows = 0;

  constructor(readonly world: World) {
    this.blocks = new Blocks(world.blockCount, world.blockSize);
    this.scheduler = new Scheduler(this.blocks, world);
    this.cache = new Array(world.blockCount * world.blockSize).fill("nothing");
  }

  add(wish: Wish): void {
    const sequence = new Sequence(wish.prompt, { everyRow: wish.everyRow });
    this.wishes.set(sequence, wish);
    this.answers.set(wish, []);
    this.scheduler.add(sequence, wish.prompt.length + wish.maxTokens);
  }

  step(): void {
    const oldest = this.scheduler.running[0] ?? this.scheduler.waiting[0];
    const decoding = this.scheduler.running.filter(({ pending }) => pending === 1);
    const chunks = this.scheduler.schedule();
    this.checkStep(chunks, oldest, decoding);
    this.compute(chunks);
    for (const { sequence, last } of chunks) {
      if (last) this.choose(sequence);
    }
    this.checkBlocks();
  }

  checkStep(chunks: readonly Chunk[], oldest: Sequence, decoding: readonly Sequence[]): void {
    const rows = chunks.reduce((sum, { count }) => sum + count, 0);
    this.rows += rows;
    assert.ok(rows <= this.world.maxBatchedTokens, `${rows} rows in a step`);
    assert.ok(this.scheduler.running.length <= this.world.maxSequences);
    assert.equal(new Set(chunks.map(({ sequence }) => sequence)).size, chunks.length, "a sequence is there once");
    assert.ok(chunks.some(({ sequence }) => sequence === oldest), "the oldest goes on in every step");
    for (const one of decoding) {
      const there = chunks.some(({ sequence }) => sequence === one);
      assert.ok(there || this.scheduler.waiting.includes(one), "who decodes gets a row in every step");
    }
    for (const { sequence, count } of chunks) {
      this.rowsOf.set(sequence, (this.rowsOf.get(sequence) ?? 0) + count);
    }
    // Who waits for an older one's copy is in, though its first row comes later.
    for (const sequence of this.scheduler.running) {
      const wish = this.wishes.get(sequence)!;
      if (!this.admitted.includes(wish)) this.admitted.push(wish);
    }
  }

  /** All rows write, then all rows read, as the kernels of one layer do. */
  compute(chunks: readonly Chunk[]): void {
    const slot = ({ blocks }: Sequence, position: number) =>
      blocks[Math.floor(position / this.world.blockSize)] * this.world.blockSize + position % this.world.blockSize;
    const text = ({ tokens }: Sequence, position: number) => tokens.slice(0, position + 1).join();
    const written = new Set<number>();
    this.copy(chunks);
    for (const { sequence, from, count } of chunks) {
      for (let position = from; position < from + count; position++) {
        const at = slot(sequence, position);
        assert.ok(!written.has(at), "a slot is written once a step");
        written.add(at);
        this.cache[at] = text(sequence, position);
      }
    }
    for (const { sequence, from, count } of chunks) {
      for (let position = 0; position < from + count; position++) {
        assert.equal(this.cache[slot(sequence, position)], text(sequence, position), `position ${position} is cached`);
      }
    }
  }

  /** All copies read, then all write. */
  copy(chunks: readonly Chunk[]): void {
    const { blockSize } = this.world;
    const copies = chunks.flatMap(({ copy }) => copy ?? []);
    assert.equal(new Set(copies.map(({ to }) => to)).size, copies.length, "a block is copied to once");
    const read = copies.map(({ from, positions }) => this.cache.slice(from * blockSize, from * blockSize + positions));
    copies.forEach(({ to }, i) => this.cache.splice(to * blockSize, read[i].length, ...read[i]));
  }

  choose(sequence: Sequence): void {
    const wish = this.wishes.get(sequence)!;
    const answer = this.answers.get(wish)!;
    if (!wish.everyRow) {
      answer.push(following(sequence.tokens));
      sequence.push(answer.at(-1)!);
    } else {
      assert.ok(this.rowsOf.get(sequence)! >= wish.prompt.length, "every row is computed");
    }
    const over = wish.everyRow || answer.length >= Math.min(wish.maxTokens, wish.abortAfter ?? Infinity);
    if (over) this.scheduler.remove(sequence);
  }

  checkBlocks(): void {
    const held = new Map<number, number>();
    for (const { blocks } of [...this.scheduler.running, ...this.scheduler.waiting]) {
      for (const block of blocks) held.set(block, (held.get(block) ?? 0) + 1);
    }
    for (let block = 0; block < this.blocks.count; block++) {
      assert.equal(this.blocks.references(block), held.get(block) ?? 0, `references of block ${block}`);
    }
    assert.equal(this.blocks.free, this.blocks.count - held.size, "free blocks");
    const order = [...this.wishes.keys()];
    const ages = [...this.scheduler.running, ...this.scheduler.waiting].map((one) => order.indexOf(one));
    assert.deepEqual(ages, ages.toSorted((a, b) => a - b), "who runs is older than who waits");
    assert.ok(this.scheduler.waiting.every(({ blocks }) => blocks.length === 0), "who waits holds nothing");
  }

  /** Runs until all is answered. */
  run(wishes: readonly Wish[]): void {
    const coming = wishes.toSorted((a, b) => a.arrival - b.arrival);
    const work = wishes.reduce((sum, { prompt, maxTokens }) => sum + prompt.length + maxTokens, 0);
    // Each is preempted at most once for each block that an older one takes.
    const enough = 50 + work * (2 + work);
    for (let step = 0; coming.length + this.scheduler.running.length + this.scheduler.waiting.length > 0; step++) {
      assert.ok(step < enough, "it ends");
      while (coming[0]?.arrival <= step) this.add(coming.shift()!);
      if (this.scheduler.running.length + this.scheduler.waiting.length > 0) this.step();
    }
    assert.equal(this.blocks.free, this.blocks.count, "no block leaks");
  }
}

function alone(wish: Wish): number[] {
  const tokens = [...wish.prompt];
  const length = wish.everyRow ? 0 : Math.min(wish.maxTokens, wish.abortAfter ?? Infinity);
  for (let i = 0; i < length; i++) tokens.push(following(tokens));
  return tokens.slice(wish.prompt.length);
}

const LONGEST = 24;

const wish: fc.Arbitrary<Wish> = fc.record({
  // Prompts of one beginning, so that prefixes are met again.
  prompt: fc.tuple(fc.nat(16), fc.array(fc.nat(2), { minLength: 1, maxLength: 8 })).map(([shared, own]) => [
    ...Array.from({ length: shared }, (_, i) => i % 3),
    ...own,
  ]).map((tokens) => tokens.slice(0, LONGEST - 8)),
  maxTokens: fc.integer({ min: 1, max: 8 }),
  arrival: fc.nat(20),
  abortAfter: fc.option(fc.integer({ min: 1, max: 8 }), { nil: undefined, freq: 3 }),
  everyRow: fc.boolean().map((value) => value || undefined),
});

const world: fc.Arbitrary<World> = fc.tuple(
  fc.integer({ min: 1, max: 5 }),
  fc.nat(20),
  fc.integer({ min: 1, max: 6 }),
  fc.nat(30),
).map(([blockSize, spare, maxSequences, more]) => ({
  blockSize,
  blockCount: Math.ceil(LONGEST / blockSize) + spare,
  maxSequences,
  maxBatchedTokens: maxSequences + more,
}));

Deno.test("requests together are answered as alone; blocks are counted, budgets kept, nobody starves", () => {
  fc.assert(
    fc.property(world, fc.array(wish, { minLength: 1, maxLength: 12 }), (world, wishes) => {
      const simulation = new Simulation(world);
      simulation.run(wishes);
      for (const wish of wishes) assert.deepEqual(simulation.answers.get(wish), alone(wish));
      const arrived = wishes.toSorted((a, b) => a.arrival - b.arrival);
      assert.deepEqual(simulation.admitted, arrived, "first come, first admitted");
    }),
    { numRuns: 500 },
  );
});

Deno.test("few blocks preempt the youngest, which is computed again", () => {
  const simulation = new Simulation({ blockSize: 4, blockCount: 6, maxSequences: 4, maxBatchedTokens: 16 });
  const wishes = [1, 2, 3, 4].map((token): Wish => ({ prompt: [token, 0, 1], maxTokens: 20, arrival: 0 }));
  simulation.run(wishes);
  for (const wish of wishes) assert.deepEqual(simulation.answers.get(wish), alone(wish));
  assert.ok(simulation.scheduler.preemptions > 0);
});

Deno.test("a shared prefix is computed once, at the same time or later", () => {
  const simulation = new Simulation({ blockSize: 4, blockCount: 100, maxSequences: 8, maxBatchedTokens: 32 });
  const prompt = Array.from({ length: 41 }, (_, i) => i % 5);
  const wishes = [0, 0, 0, 0, 9].map((arrival): Wish => ({ prompt, maxTokens: 1, arrival }));
  simulation.run(wishes);
  assert.equal(simulation.rows, 41 + 4, "all but the last position once");
  assert.equal(simulation.scheduler.reused, 4 * 40);
});

Deno.test("choices of one prompt compute it once: full blocks are shared, what is left is copied, at the same time or later", () => {
  const simulation = new Simulation({ blockSize: 4, blockCount: 100, maxSequences: 8, maxBatchedTokens: 16 });
  const prompt = Array.from({ length: 43 }, (_, i) => i % 5); // 10 blocks, 2 positions, and the last one
  const wishes = [0, 0, 0, 2, 4].map((arrival): Wish => ({ prompt, maxTokens: 6, arrival }));
  simulation.run(wishes);
  for (const wish of wishes) assert.deepEqual(simulation.answers.get(wish), alone(wish));
  assert.equal(simulation.rows, 43 + 4 + 5 * 5, "the prompt once, its last position for each, and what was chosen");
  assert.equal(simulation.scheduler.reused, 4 * 42);
});

Deno.test("a long prompt holds up neither those that decode nor a short one", () => {
  const simulation = new Simulation({ blockSize: 4, blockCount: 100, maxSequences: 4, maxBatchedTokens: 16 });
  simulation.add({ prompt: [1], maxTokens: 30, arrival: 0 });
  simulation.step();
  simulation.add({ prompt: Array.from({ length: 150 }, (_, i) => i % 7), maxTokens: 1, arrival: 1 });
  simulation.add({ prompt: [3, 4, 5, 6], maxTokens: 1, arrival: 1 });
  const short = [...simulation.wishes.keys()][2];
  simulation.step();
  assert.equal(short.tokens.length, 5);
  simulation.step();
  assert.equal([...simulation.wishes.keys()][0].tokens.length, 4);
});

Deno.test("one sequence alone has several steps at once; others end that", () => {
  const simulation = new Simulation({ blockSize: 4, blockCount: 10, maxSequences: 4, maxBatchedTokens: 16 });
  const { scheduler, blocks } = simulation;
  simulation.add({ prompt: [1, 2, 3], maxTokens: 30, arrival: 0 });
  const [sequence] = scheduler.waiting;
  assert.equal(scheduler.scheduleAlone(8), undefined);
  simulation.step();
  assert.deepEqual(scheduler.scheduleAlone(8), { sequence, from: 3, count: 8, last: true });
  assert.equal(sequence.blocks.length, 3);
  for (let i = 0; i < 8; i++) sequence.push(following(sequence.tokens));
  sequence.advance(blocks, 8);
  assert.equal(sequence.pending, 1);
  assert.equal(blocks.findable, 2);
  simulation.add({ prompt: [1, 2], maxTokens: 1, arrival: 0 });
  assert.equal(scheduler.scheduleAlone(8), undefined);
  scheduler.remove(sequence);
  assert.equal(blocks.free, 10);
});

Deno.test("what can't be scheduled is refused", () => {
  const blocks = new Blocks(3, 4);
  assert.throws(() => new Scheduler(blocks, { maxSequences: 4, maxBatchedTokens: 3 }), /a row for each sequence/);
  const scheduler = new Scheduler(blocks, { maxSequences: 4, maxBatchedTokens: 4 });
  assert.throws(() => scheduler.add(new Sequence([1]), 13), /need 4 blocks of 4, there are 3/);
  assert.throws(() => new Sequence([]), /empty prompt/);
});

Deno.test("rows are divided evenly, and never past what is wanted or there", () => {
  assert.deepEqual(divide([100, 4, 100], 64, 16), [30, 4, 30]);
  assert.deepEqual(divide([100, 100, 100], 40, 16), [20, 20, 0]);
  assert.deepEqual(divide([100, 1], 7, 16), [7, 0]);
  assert.deepEqual(divide([], 7, 16), []);
  fc.assert(fc.property(fc.array(fc.integer({ min: 1, max: 300 })), fc.nat(300), fc.integer({ min: 1, max: 32 }), (
    wanted,
    rows,
    block,
  ) => {
    const shares = divide(wanted, rows, block);
    assert.ok(shares.reduce((sum, share) => sum + share, 0) <= rows);
    assert.ok(shares.every((share, i) => share >= 0 && share <= wanted[i]));
    if (rows > 0 && wanted.length > 0) assert.ok(shares[0] > 0);
  }));
});
