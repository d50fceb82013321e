/**
 * A call's candidates against each other: each challenger runs in turns with the best so far, so that a machine's noise
 * falls on both, and no more than two are held at once. It knows no op, and nothing of what is kept.
 */
import type { Command } from "./assemble.ts";
import type { Device } from "./device.ts";
import type { Stopwatch } from "./stopwatch.ts";
import type { Isolated, Trial } from "./trial.ts";

export interface Result {
  /** The candidate to take: the first, but where another is clearly faster. */
  readonly index: number;
  readonly milliseconds: number;
  readonly defaultMilliseconds: number;
  /** Candidates that had their turn: the first so many. */
  readonly tried: number;
}

/** Where a match stands: who leads, and how many had their turn. */
export type Standing = Pick<Result, "index" | "tried">;

/** How much faster a candidate must be to replace another: less is noise. */
const CLEAR_GAIN = 0.03;

/** A candidate this many times slower than the best so far is left after one run. */
const HOPELESS = 3;

/** Milliseconds that a first run may lose to compiling. */
const COMPILING = 3000;

/** Milliseconds of one measurement, and of all measurements of two candidates against each other. */
const BATCH = 20;
const DUEL = 1500;

const ROUNDS = { least: 2, most: 7 };

/** Runs in one submit: a very short kernel needn't fill a whole batch. */
const REPEATS = 500;

interface Contender extends Disposable {
  readonly index: number;
  readonly trial: Trial;
  /** Milliseconds of one run, as far as one run tells. */
  readonly rough: number;
}

/** Milliseconds of a run, round by round. */
interface Duel {
  readonly champion: readonly number[];
  readonly challenger: readonly number[];
}

/** Lets the candidates of one call run. */
export class Match {
  constructor(
    readonly device: Device,
    readonly stopwatch: Stopwatch,
    readonly call: Isolated,
    readonly note: (line: string) => void,
  ) {}

  /**
   * Lets candidates run, from where an earlier match ended, until time is up; one of them in any case.
   *
   * @returns null where none could.
   */
  async play(candidates: number, timeIsUp: () => boolean, from?: Standing): Promise<Result | null> {
    let champion = from === undefined ? null : await this.#enter(from.index, null);
    let tried = from?.tried ?? 0;
    try {
      do {
        const challenger = await this.#enter(tried++, champion);
        if (challenger === null) continue;
        const won = champion === null || isClear(await this.#duel(champion, challenger));
        (won ? champion : challenger)?.[Symbol.dispose]();
        if (won) champion = challenger;
      } while (tried < candidates && !timeIsUp());
      return champion && { ...await this.#settle(champion), tried };
    } finally {
      champion?.[Symbol.dispose]();
    }
  }

  /** The winner once more against the op's own best guess, which stays where the gain isn't clear again. */
  async #settle(winner: Contender): Promise<Omit<Result, "tried">> {
    if (winner.index === 0) {
      const milliseconds = Math.min(winner.rough, await this.#run(winner), await this.#run(winner));
      return { index: 0, milliseconds, defaultMilliseconds: milliseconds };
    }
    using guess = await this.#enter(0, null);
    if (guess === null) return { index: winner.index, milliseconds: winner.rough, defaultMilliseconds: winner.rough };
    const duel = await this.#duel(guess, winner);
    const defaultMilliseconds = Math.min(...duel.champion);
    return isClear(duel)
      ? { index: winner.index, milliseconds: Math.min(...duel.challenger), defaultMilliseconds }
      : { index: 0, milliseconds: defaultMilliseconds, defaultMilliseconds };
  }

  /** Makes a candidate ready and runs it twice. @returns null where that fails, or it has no hope against `best`. */
  async #enter(index: number, best: Contender | null): Promise<Contender | null> {
    const bound = HOPELESS * (best?.rough ?? Infinity);
    try {
      return await this.device.attempt(async () => {
        using opening = new DisposableStack();
        const trial = opening.use(await this.call.open(index));
        if (!await this.#finishes(trial.commands, bound + COMPILING)) return null;
        const rough = await this.stopwatch.time(trial.commands);
        if (rough > bound) return null;
        const owned = opening.move();
        return { index, trial, rough, [Symbol.dispose]: () => owned.dispose() };
      });
    } catch (error) {
      this.device.check();
      this.note(`candidate ${index} is left out: ${error instanceof Error ? error.message : error}`);
      return null;
    }
  }

  /** Runs commands a dispatch at a time, and leaves off as soon as they have taken more than `limit` milliseconds. */
  async #finishes(commands: readonly Command[], limit: number): Promise<boolean> {
    let milliseconds = 0;
    let from = 0;
    for (const [at, { kind }] of commands.entries()) {
      if (kind !== "dispatch") continue;
      milliseconds += await this.stopwatch.time(commands.slice(from, at + 1));
      from = at + 1;
      if (milliseconds > limit) return false;
    }
    return true;
  }

  async #duel(champion: Contender, challenger: Contender): Promise<Duel> {
    const duel = { champion: [] as number[], challenger: [] as number[] };
    const start = performance.now();
    for (let round = 0; round < ROUNDS.most; round++) {
      if (round >= ROUNDS.least && performance.now() - start > DUEL) break;
      // The order changes: what runs second may find caches warmer.
      for (const side of round % 2 === 0 ? ["champion", "challenger"] as const : ["challenger", "champion"] as const) {
        duel[side].push(await this.#run(side === "champion" ? champion : challenger));
      }
    }
    return duel;
  }

  /** Milliseconds of one run, the mean of a batch. */
  async #run({ trial, rough }: Contender): Promise<number> {
    const repeats = Math.max(1, Math.min(REPEATS, Math.ceil(BATCH / Math.max(rough, 1e-3))));
    return await this.stopwatch.time(trial.commands, repeats) / repeats;
  }
}

/** Whether the challenger's best run and its usual one are clearly faster. */
function isClear({ champion, challenger }: Duel): boolean {
  const clearly = (a: number, b: number) => a < b * (1 - CLEAR_GAIN);
  return clearly(Math.min(...challenger), Math.min(...champion)) && clearly(median(challenger), median(champion));
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1];
}
