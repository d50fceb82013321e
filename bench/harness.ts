/** How benches measure: contenders taking turns, medians, ratios. It knows no kernel, no peer and no way to print. */
import { UserError } from "../model/errors.ts";

/** What every bench gives back. */
export interface Bench {
  readonly name: string;
  readonly adapter?: string;
  readonly driver?: string;
  readonly config: Readonly<Record<string, unknown>>;
  readonly results: readonly Result[];
  /** What could not be measured, and why. */
  readonly failed?: readonly Failure[];
  /** Text to print below the table. */
  readonly notes?: readonly string[];
}

export interface Result extends Rates {
  readonly case: string;
  readonly repeats_ms: readonly number[];
  readonly median_ms: number;
  readonly peak_device_bytes?: number;
  /** By peer: its time over ours in the same run. */
  readonly ratio?: Readonly<Record<string, number>>;
}

interface Rates {
  readonly mb_per_second?: number;
  readonly tokens_per_second?: number;
  readonly gflops?: number;
}

export interface Failure {
  readonly case: string;
  readonly reason: string;
}

/** What the command line asks of a bench. */
export interface BenchOptions {
  /** The case to run: its name, or a part of several. All where it is empty. */
  readonly case: string;
  /** Counted repeats; the bench's own number where undefined. */
  readonly repeats?: number;
  /** Whether peers that need no download take part. */
  readonly peers: boolean;
  /** Which kernels: each op's best guess, those tuned before and new ones timed, or all timed again. */
  readonly tune: "off" | "cached" | "full";
  /** Time for new kernels of each case. */
  readonly tuneSeconds: number;
  /** Whether to measure kernel by kernel too, where a bench runs many. */
  readonly profile: boolean;
  /** Told what is being measured. */
  readonly progress: (line: string) => void;
}

/** What is timed. One repeat of work that takes little time may do it many times and give the mean. */
export interface Contender extends AsyncDisposable {
  readonly name: string;
  /** Its version, and what else decides how fast it is. */
  readonly about?: string;
  /** Does the work and waits until it is done. @returns milliseconds of one. */
  run(): Promise<number>;
}

/** Someone else's program for the same work, opened when its turn comes. */
export interface Peer {
  readonly name: string;
  /** Gets ready. Throws where it isn't installed or can't do the work. */
  open(): Promise<Contender>;
}

/** What one repeat of a case does, to turn times into rates. */
export interface Amount {
  readonly flops?: number;
  readonly tokens?: number;
  readonly bytes?: number;
}

/** Runs that aren't counted, before those that are. */
export const WARM_UP = 2;

/** Work shorter than this is repeated until it takes as long, so that the wait at its end weighs little. */
const REPEAT_MS = 150;
const MOST_TIMES = 64;

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Times and rates of a case. */
export function resultOf(name: string, repeats_ms: readonly number[], { flops, tokens, bytes }: Amount = {}): Result {
  const median_ms = median(repeats_ms);
  return {
    case: name,
    repeats_ms,
    median_ms,
    ...bytes === undefined ? {} : { mb_per_second: bytes / median_ms / 1e3 },
    ...tokens === undefined ? {} : { tokens_per_second: tokens / median_ms * 1e3 },
    ...flops === undefined ? {} : { gflops: flops / median_ms / 1e6 },
  };
}

/**
 * Contenders run in turn, A B A B, so that what else the machine does hits all alike.
 *
 * @returns milliseconds by contender, in their order.
 */
export async function alternate(contenders: readonly Contender[], repeats: number): Promise<number[][]> {
  const times = contenders.map((): number[] => []);
  for (let repeat = -WARM_UP; repeat < repeats; repeat++) {
    for (const [i, contender] of contenders.entries()) {
      const ms = await contender.run();
      if (repeat >= 0) times[i].push(ms);
    }
  }
  return times;
}

/** What is measured in one case, against whom. */
export interface Comparison {
  readonly name: string;
  readonly amount: Amount;
  readonly ours: Contender;
  readonly peers: readonly Peer[];
  readonly repeats: number;
  readonly progress: (line: string) => void;
}

/** What came of one case or several. */
export interface Measured {
  readonly results: readonly Result[];
  readonly failed: readonly Failure[];
  /** By peer: its version, and what else decides how fast it is. */
  readonly peers: Readonly<Record<string, string>>;
}

/** Cases as one. */
export function join(measured: readonly Measured[]): Measured {
  return {
    results: measured.flatMap(({ results }) => results),
    failed: measured.flatMap(({ failed }) => failed),
    peers: Object.assign({}, ...measured.map(({ peers }) => peers)),
  };
}

/** Measures ours against each peer, one peer after another. A peer that fails is reported and ends nothing. */
export async function compare({ name, amount, ours, peers, repeats, progress }: Comparison): Promise<Measured> {
  const mine: number[] = [];
  const ratio: Record<string, number> = {};
  const theirs: Result[] = [];
  const failed: Failure[] = [];
  const about: Record<string, string> = {};
  for (const peer of peers) {
    const label = `${name}, ${peer.name}`;
    progress(label);
    try {
      await using contender = await peer.open();
      if (contender.about !== undefined) about[peer.name] = contender.about;
      const [own, other] = await alternate([ours, contender], repeats);
      mine.push(...own);
      ratio[peer.name] = median(other) / median(own);
      theirs.push(resultOf(label, other, amount));
    } catch (error) {
      failed.push({ case: label, reason: error instanceof Error ? error.message : String(error) });
    }
  }
  if (mine.length === 0) {
    progress(name);
    mine.push(...(await alternate([ours], repeats))[0]);
  }
  const own = resultOf(name, mine, amount);
  return { results: [theirs.length > 0 ? { ...own, ratio } : own, ...theirs], failed, peers: about };
}

/** A contender in this process. */
export function contender(name: string, work: () => unknown): Contender {
  return {
    name,
    async run() {
      const start = performance.now();
      await work();
      return performance.now() - start;
    },
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
}

/**
 * Milliseconds of one of `work(times)`, which does the work that often and waits once: as often as takes 0.15 s, found by
 * the first calls.
 */
export function timeMany(work: (times: number) => Promise<void>): () => Promise<number> {
  let times = 1;
  return async () => {
    const start = performance.now();
    await work(times);
    const each = (performance.now() - start) / times;
    times = Math.max(times, Math.min(MOST_TIMES, Math.ceil(REPEAT_MS / each)));
    return each;
  };
}

/**
 * Cases of that name, else those whose name holds it.
 *
 * @throws UserError with exit code 2 where none does.
 */
export function select<T extends { readonly name: string }>(cases: readonly T[], filter: string): readonly T[] {
  const exact = cases.filter(({ name }) => name === filter);
  const chosen = exact.length > 0 ? exact : cases.filter(({ name }) => name.includes(filter));
  if (chosen.length > 0) return chosen;
  throw new UserError(`Name a case: found ${filter}, wanted part of ${cases.map(({ name }) => name).join("; ")}`, 2);
}
