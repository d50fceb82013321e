/** Several engines of one model as one, each on an adapter of its own: a request goes to the one with least to do. It knows no GPU. */
import type { Engine, EngineStats, Generated, Sampling, TokenLogprob } from "../model/generate.ts";

/** An engine that may be out of order for a while. */
export interface FleetEngine extends Engine {
  readonly healthy: boolean;
}

interface Member {
  readonly engine: FleetEngine;
  /** Requests under way. */
  load: number;
}

/** Engines of the same model; they are closed with it. */
export class Fleet implements FleetEngine {
  readonly contextLength: number;
  readonly vocabSize: number;
  readonly capacity: number;
  readonly #members: readonly Member[];

  /** @throws RangeError for no engine. */
  constructor(engines: readonly FleetEngine[]) {
    if (engines.length === 0) throw new RangeError("Cannot make a fleet of no engines: give at least one");
    this.#members = engines.map((engine) => ({ engine, load: 0 }));
    this.contextLength = engines[0].contextLength;
    this.vocabSize = engines[0].vocabSize;
    this.capacity = engines.reduce((sum, { capacity = 1 }) => sum + capacity, 0);
  }

  /** Whether one of them answers. */
  get healthy(): boolean {
    return this.#members.some(({ engine }) => engine.healthy);
  }

  /** The sums of all that tell. */
  get stats(): EngineStats | undefined {
    const all = this.#members.flatMap(({ engine }) => engine.stats ?? []);
    return all.length === 0 ? undefined : all.reduce(addStats);
  }

  async *generate(prompt: Uint32Array, sampling: Sampling, signal?: AbortSignal): AsyncGenerator<Generated> {
    const member = this.#leastLoaded();
    member.load++;
    try {
      yield* member.engine.generate(prompt, sampling, signal);
    } finally {
      member.load--;
    }
  }

  async score(tokens: Uint32Array, top: number): Promise<readonly (TokenLogprob | null)[]> {
    const member = this.#leastLoaded();
    member.load++;
    try {
      return await member.engine.score(tokens, top);
    } finally {
      member.load--;
    }
  }

  /** Of those that answer, by requests for each place; where none does, the first, which says why. */
  #leastLoaded(): Member {
    const share = ({ load, engine }: Member) => load / (engine.capacity ?? 1);
    const open = this.#members.filter(({ engine }) => engine.healthy);
    return open.reduce<Member | undefined>((a, b) => a && share(a) <= share(b) ? a : b, undefined) ?? this.#members[0];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#members.map(({ engine }) => engine[Symbol.asyncDispose]()));
  }
}

function addStats(a: EngineStats, b: EngineStats): EngineStats {
  const length = Math.max(a.stepSizes.length, b.stepSizes.length);
  return {
    running: a.running + b.running,
    waiting: a.waiting + b.waiting,
    blocks: a.blocks + b.blocks,
    freeBlocks: a.freeBlocks + b.freeBlocks,
    steps: a.steps + b.steps,
    rows: a.rows + b.rows,
    stepSizes: Array.from({ length }, (_, i) => (a.stepSizes[i] ?? 0) + (b.stepSizes[i] ?? 0)),
    reusedTokens: a.reusedTokens + b.reusedTokens,
    preemptions: a.preemptions + b.preemptions,
    restarts: (a.restarts ?? 0) + (b.restarts ?? 0),
  };
}
