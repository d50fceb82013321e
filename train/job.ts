/**
 * What a supervisor and the ranks it starts tell each other: a folder with the job, a beat of each rank's heart, and why a
 * rank failed. It starts nothing and knows no GPU.
 */
import { join } from "node:path";
import type { AdapterChoice } from "../kernels/gpu/adapters.ts";
import { UserError } from "../model/errors.ts";
import { Abandoned } from "./communicator.ts";
import type { Settings } from "./config.ts";
import { removeSharedFile } from "./posix_memory.ts";

/** How ranks of one machine are kept apart. */
export const isolations = ["worker", "process"] as const;
export type Isolation = typeof isolations[number];

/** What gradients travel in between ranks. */
export const wires = ["f32", "bf16"] as const;
export type Wire = typeof wires[number];

export interface Job {
  readonly settings: Settings;
  /** The adapter of each rank. */
  readonly adapters: readonly AdapterChoice[];
  readonly isolation: Isolation;
  /** Name of the POSIX shared memory; null where ranks are Workers. */
  readonly sharedMemory: string | null;
  /** Id of the process that watches: where it is gone, ranks end. */
  readonly supervisor: number;
}

/** The last sign of life of a rank. */
export interface Beat {
  /** Updates done. */
  readonly step: number;
  /** The run's folder, once it is known. */
  readonly run: string | null;
}

/** A beat as the supervisor finds it: whether or not its text is whole, `time` differs from that of the beat before. */
export interface HeardBeat {
  readonly time: number;
  readonly beat: Beat | undefined;
}

/** Why a rank ended: what a user can mend, a fault that another try may not meet, or another rank's end. */
export interface Failure {
  readonly kind: "user" | "fault" | "abandoned";
  readonly message: string;
}

/** Exit codes of a rank's process, beside a user error's own: a fault that another try may not meet, another rank's end. */
export const FAULT = 70;
export const ABANDONED = 71;
/** Ended by a signal, as shells have it. */
export const INTERRUPTED = 130;

/** Milliseconds between two beats that are written. */
const BEAT_EVERY = 50;

const JOB = "job.json";
const beatFile = (folder: string, rank: number) => join(folder, `beat-${rank}.json`);
const failureFile = (folder: string, rank: number) => join(folder, `failure-${rank}.json`);

export async function writeJob(folder: string, job: Job): Promise<void> {
  await Deno.writeTextFile(join(folder, JOB), JSON.stringify(job));
}

export async function readJob(folder: string): Promise<Job> {
  return JSON.parse(await Deno.readTextFile(join(folder, JOB)));
}

/** A rank's heart. Its first beat says too that the rank has mapped the job's shared memory. */
export class Heart {
  #written = -Infinity;
  #beat: Beat = { step: 0, run: null };

  constructor(readonly folder: string, readonly rank: number, readonly job: Pick<Job, "supervisor" | "sharedMemory">) {}

  /**
   * Says that this rank lives; call it often, it writes seldom.
   *
   * @throws Abandoned where the supervisor is gone; nothing of the job is left then but its ranks.
   */
  beat(news: Partial<Beat> = {}): void {
    const { run } = this.#beat;
    this.#beat = { ...this.#beat, ...news };
    const now = performance.now();
    if (now - this.#written < BEAT_EVERY && this.#beat.run === run) return;
    this.#written = now;
    if (Deno.ppid !== this.job.supervisor) this.#orphaned();
    try {
      Deno.writeTextFileSync(beatFile(this.folder, this.rank), JSON.stringify(this.#beat));
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) this.#orphaned();
      // A full disk ends no rank: opening the file has set its time, which is the sign of life.
    }
  }

  /** Ends what the supervisor would have ended. */
  #orphaned(): never {
    if (this.job.sharedMemory !== null) removeSharedFile(this.job.sharedMemory);
    try {
      Deno.removeSync(this.folder, { recursive: true });
    } catch {
      // Another rank removes it.
    }
    throw new Abandoned("the supervisor is gone");
  }
}

/** A rank's last beat; undefined where it had none yet. */
export async function readBeat(folder: string, rank: number): Promise<HeardBeat | undefined> {
  const file = beatFile(folder, rank);
  const time = await Deno.stat(file).then(({ mtime }) => Number(mtime), () => undefined);
  return time === undefined ? undefined : { time, beat: await readOwn<Beat>(file) };
}

/** Leaves word of why a rank fails, where the disk takes it; the exit code tells the rest. */
export function writeFailure(folder: string, rank: number, error: unknown): void {
  const kind = error instanceof UserError ? "user" : error instanceof Abandoned ? "abandoned" : "fault";
  const message = error instanceof Error ? error.message : String(error);
  const failure: Failure = { kind, message };
  try {
    Deno.writeTextFileSync(failureFile(folder, rank), JSON.stringify(failure));
  } catch {
    // The disk is full, or the supervisor and its folder are gone.
  }
}

/** Why a rank failed; undefined where it left no word, as one that was killed. */
export async function readFailure(folder: string, rank: number): Promise<Failure | undefined> {
  return await readOwn(failureFile(folder, rank));
}

/** What a rank wrote; undefined where there is nothing, or it isn't whole. */
async function readOwn<T>(file: string): Promise<T | undefined> {
  try {
    return JSON.parse(await Deno.readTextFile(file));
  } catch {
    return undefined;
  }
}
