/**
 * What a supervisor and the ranks it starts tell each other: a folder with the job, a beat of each rank's heart, and why a
 * rank failed. It starts nothing and knows no GPU.
 */
import { join } from "node:path";
import type { AdapterChoice } from "../kernels/gpu/adapters.ts";
import { UserError } from "../model/errors.ts";
import { Abandoned } from "./communicator.ts";
import type { Settings } from "./config.ts";

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
  /** Process that watches: where it is gone, ranks end. */
  readonly supervisor: number;
}

/** The last sign of life of a rank. */
export interface Beat {
  /** Updates done. */
  readonly step: number;
  /** The run's folder, once it is known. */
  readonly run: string | null;
}

/** Why a rank ended: what a user can mend, a fault that another try may not meet, or another rank's end. */
export interface Failure {
  readonly kind: "user" | "fault" | "abandoned";
  readonly message: string;
}

/** Milliseconds between two beats that are written. */
const BEAT_EVERY = 500;

const JOB = "job.json";
const beatFile = (folder: string, rank: number) => join(folder, `beat-${rank}.json`);
const failureFile = (folder: string, rank: number) => join(folder, `failure-${rank}.json`);

export async function writeJob(folder: string, job: Job): Promise<void> {
  await Deno.writeTextFile(join(folder, JOB), JSON.stringify(job));
}

export async function readJob(folder: string): Promise<Job> {
  return JSON.parse(await Deno.readTextFile(join(folder, JOB)));
}

/** A rank's heart. */
export class Heart {
  #written = -Infinity;
  #beat: Beat = { step: 0, run: null };

  constructor(readonly folder: string, readonly rank: number, readonly supervisor: number) {}

  /**
   * Says that this rank lives; call it often, it writes seldom.
   *
   * @throws Abandoned where the supervisor is gone.
   */
  beat(news: Partial<Beat> = {}): void {
    this.#beat = { ...this.#beat, ...news };
    const now = performance.now();
    if (now - this.#written < BEAT_EVERY) return;
    this.#written = now;
    if (Deno.ppid !== this.supervisor) throw new Abandoned("the supervisor is gone");
    Deno.writeTextFileSync(beatFile(this.folder, this.rank), JSON.stringify(this.#beat));
  }
}

/** A rank's last beat and how many milliseconds ago it was; undefined where it had none yet. */
export async function readBeat(folder: string, rank: number): Promise<Beat & { readonly age: number } | undefined> {
  try {
    const file = beatFile(folder, rank);
    const [text, { mtime }] = await Promise.all([Deno.readTextFile(file), Deno.stat(file)]);
    return { ...JSON.parse(text) as Beat, age: Date.now() - Number(mtime) };
  } catch {
    return undefined; // not there, or being written
  }
}

/** Leaves word of why a rank fails. */
export function writeFailure(folder: string, rank: number, error: unknown): void {
  const kind = error instanceof UserError ? "user" : error instanceof Abandoned ? "abandoned" : "fault";
  const message = error instanceof Error ? error.message : String(error);
  const failure: Failure = { kind, message };
  Deno.writeTextFileSync(failureFile(folder, rank), JSON.stringify(failure));
}

/** Why a rank failed; undefined where it left no word, as one that was killed. */
export async function readFailure(folder: string, rank: number): Promise<Failure | undefined> {
  try {
    return JSON.parse(await Deno.readTextFile(failureFile(folder, rank)));
  } catch {
    return undefined;
  }
}
