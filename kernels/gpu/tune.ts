/**
 * Finds the fastest of each call's candidates on the adapter at hand by running them, and keeps what it found. It knows no
 * op: a call is its description, a candidate its fingerprint.
 */
import { estimate } from "./assemble.ts";
import { Choices, describeCall, fingerprint, fingerprintOfAll, type Recorded } from "./choices.ts";
import type { Device } from "./device.ts";
import type { Chooser, Offer } from "./graph.ts";
import { Match } from "./match.ts";
import { openStopwatch, type Stopwatch } from "./stopwatch.ts";
import { Isolated, labelOf } from "./trial.ts";
import { TuneCache, type Winner } from "./tune_cache.ts";

export interface TuneOptions {
  /** Where winners are kept between processes. */
  readonly folder: string | undefined;
  /** Time what the cache knows again. */
  readonly again?: boolean;
  /** What may be spent in all; what doesn't fit keeps the op's own best guess. Default: no limit. */
  readonly seconds?: number;
  readonly onProgress?: (progress: TuneProgress) => void;
  /** A line about something that was left out. */
  readonly note?: (line: string) => void;
}

/** Kernel `index` of `total` is being tuned. */
export interface TuneProgress {
  readonly index: number;
  readonly total: number;
  readonly call: string;
  readonly secondsLeft: number;
}

/** A line that tells how far tuning is. */
export function formatTuning({ index, total, call, secondsLeft }: TuneProgress): string {
  const left = Number.isFinite(secondsLeft) ? `, ${Math.ceil(secondsLeft)} s left` : "";
  return `tuning kernel ${index} of ${total}${left}: ${call}`;
}

/** The adapter's winners as they stand on disk, for programs that tune nothing; without a folder there are none. */
export function cachedChoices(device: Device, folder: string | undefined, note: (line: string) => void): Choices {
  return new Choices(folder === undefined ? {} : new TuneCache(device, folder, note).fingerprints);
}

/** Tunes the calls of every program compiled while it is the device's chooser; disposing of it frees its clock. */
export class Tuner implements Chooser, Disposable {
  readonly #cache: TuneCache;
  readonly #tuned = new Map<string, { winner: Winner; calls: number }>();
  readonly #used: Record<string, string> = {};
  #stopwatch: Stopwatch | null = null;
  #milliseconds = 0;
  #left = 0;
  #turn: Promise<unknown> = Promise.resolve();

  constructor(readonly device: Device, readonly options: TuneOptions) {
    this.#cache = new TuneCache(device, options.folder, (line) => options.note?.(line));
  }

  /** What programs compiled up to now run by. */
  get used(): Recorded {
    return this.#used;
  }

  choose(offers: readonly Offer[]): Promise<readonly number[]> {
    const chosen = this.#turn.then(() => this.#choose(offers)); // one at a time: they would disturb each other's clock
    this.#turn = chosen.catch(() => {});
    return chosen;
  }

  async #choose(offers: readonly Offer[]): Promise<readonly number[]> {
    const kinds = kindsOf(offers);
    const waiting = [...kinds.values()].filter((kind) => this.#wants(kind))
      .sort((a, b) => this.#weight(b) - this.#weight(a));
    for (const [index, kind] of waiting.entries()) {
      const secondsLeft = this.#secondsLeft();
      if (secondsLeft <= 0) {
        this.#left += waiting.length - index;
        break;
      }
      this.options.onProgress?.({ index: index + 1, total: waiting.length, call: kind.description, secondsLeft });
      const start = performance.now();
      const winner = await this.#tune(kind);
      this.#milliseconds += performance.now() - start;
      if (winner === null || winner.tried < kind.offer.candidates.length) this.#left++;
      if (winner === null) continue;
      this.#tuned.set(kind.description, { winner, calls: kind.calls });
      this.#cache.put(kind.description, winner);
    }
    const known: Record<string, string> = {};
    for (const kind of kinds.values()) {
      const entry = this.#known(kind);
      if (entry !== undefined) known[kind.description] = entry.winner;
    }
    const choices = new Choices(known);
    const chosen = await choices.choose(offers);
    Object.assign(this.#used, choices.used);
    return chosen;
  }

  #secondsLeft(): number {
    return (this.options.seconds ?? Infinity) - this.#milliseconds / 1000;
  }

  /** Whether a kind of call is still to be timed. */
  #wants(kind: Kind): boolean {
    if (kind.offer.candidates.length < 2 || this.#tuned.has(kind.description)) return false;
    return this.options.again === true || (this.#known(kind)?.tried ?? 0) < kind.offer.candidates.length;
  }

  /** What the cache knows of the very candidates that are offered. */
  #known({ description, offered }: Kind): Winner | undefined {
    const entry = this.#cache.get(description);
    return entry?.offered === offered ? entry : undefined;
  }

  /** A guess of what the program spends on it: what takes most is tuned first. */
  #weight({ offer, calls }: Kind): number {
    return calls * estimate(offer.call, this.device.capabilities);
  }

  /** The winner among a call's candidates; null where time or the device didn't allow to find out. */
  async #tune(kind: Kind): Promise<Winner | null> {
    const { offer, description, offered } = kind;
    const { call, candidates } = offer;
    const known = this.options.again === true ? undefined : this.#known(kind);
    const index = candidates.findIndex((candidate) => fingerprint(call, candidate) === known?.winner);
    try {
      using isolated = await this.device.attempt(() => Promise.resolve(new Isolated(this.device, offer)));
      const stopwatch = this.#stopwatch ??= await openStopwatch(this.device);
      const match = new Match(
        this.device,
        stopwatch,
        isolated,
        (line) => this.options.note?.(`${description}: ${line}`),
      );
      const start = performance.now();
      const limit = this.#secondsLeft() * 1000;
      const from = known && { index, tried: known.tried };
      const result = await match.play(candidates.length, () => performance.now() - start > limit, from);
      if (result === null) return null;
      const { flops, bytes } = call.op.cost(call);
      return {
        winner: fingerprint(call, candidates[result.index]),
        tried: result.tried,
        offered,
        kernel: labelOf(candidates[result.index]),
        milliseconds: result.milliseconds,
        defaultMilliseconds: result.defaultMilliseconds,
        flops,
        bytes,
      };
    } catch (error) {
      this.device.check();
      this.options.note?.(`${description} keeps its default: ${messageOf(error)}`);
      return null;
    }
  }

  /** What was gained, in one line; undefined where there was nothing to tune. */
  summary(): string | undefined {
    const left = this.#left === 0 ? "" : `; ${this.#left} wait until there is time`;
    if (this.#tuned.size === 0) return this.#left === 0 ? undefined : `no kernel was tuned${left}`;
    const total = (time: "milliseconds" | "defaultMilliseconds") =>
      [...this.#tuned.values()].reduce((sum, { winner, calls }) => sum + calls * winner[time], 0);
    const gain = total("defaultMilliseconds") / total("milliseconds");
    return `tuned ${this.#tuned.size} kernels in ${
      (this.#milliseconds / 1000).toFixed(0)
    } s; by the tuner's clock they ` +
      `make their part of the step ${gain.toFixed(2)} times faster${left}`;
  }

  [Symbol.dispose](): void {
    this.#stopwatch?.[Symbol.dispose]();
  }
}

/** Calls of one description, by it. */
interface Kind {
  readonly description: string;
  readonly offer: Offer;
  /** Fingerprint of all candidates. */
  readonly offered: string;
  /** How many calls of the program it stands for. */
  calls: number;
}

function kindsOf(offers: readonly Offer[]): Map<string, Kind> {
  const kinds = new Map<string, Kind>();
  for (const offer of offers) {
    const description = describeCall(offer.call, offer.keep);
    const known = kinds.get(description);
    if (known !== undefined) known.calls++;
    else kinds.set(description, { description, offer, offered: fingerprintOfAll(offer), calls: 1 });
  }
  return kinds;
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
