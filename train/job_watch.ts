/**
 * The processes of a job: started, watched until the job ends, and ended with it. It knows no training and doesn't decide
 * what comes after.
 */
import { ABANDONED, type Beat, INTERRUPTED, type Job, readBeat, readFailure } from "./job.ts";

/** Starts the process of a rank, or of all ranks where `rank` is null, for the job in a folder. */
export type StartRanks = (folder: string, rank: number | null) => Deno.ChildProcess;

/** How a job ended. */
export interface Ending {
  /** All is done; it was asked to end; a user must mend something, and was told what; another try may not meet it. */
  readonly kind: "done" | "stopped" | "user" | "fault";
  readonly exitCode: number;
  /** The rank that began it; null where that can't be told. */
  readonly rank: number | null;
  /** What became of that rank: "was killed by SIGKILL". */
  readonly how: string;
  /** What it said of why, or empty. */
  readonly why: string;
}

export interface Watching {
  readonly start: StartRanks;
  /** Seconds without a sign of life after which a rank counts as dead. */
  readonly hangSeconds: number;
  /** Called when every rank has given its first sign of life. */
  readonly onJoined?: () => void;
  /** Called when the run's folder is known. */
  readonly onRun?: (run: string) => void;
}

/** A process and the ranks in it. */
interface Member {
  readonly ranks: readonly number[];
  readonly child: Deno.ChildProcess;
  status: Deno.CommandStatus | undefined;
}

interface Pulse {
  /** Time of the last beat, by the file system's clock. */
  time: number | undefined;
  /** Milliseconds since it was heard, by this process's clock. */
  silence: number;
}

const POLL_MS = 250;
/** What other processes have to end in, once one has. */
const PATIENCE_MS = 5000;

const done: Ending = { kind: "done", exitCode: 0, rank: null, how: "ended", why: "" };

const stopped: Ending = { kind: "stopped", exitCode: INTERRUPTED, rank: null, how: "was stopped", why: "" };

/** `await using` kills what is left of the job, and waits until it is gone. */
export class JobWatch implements AsyncDisposable {
  readonly #members: Member[] = [];
  readonly #pulses: readonly Pulse[];
  #beat: Beat = { step: 0, run: null };
  #joined = false;
  /** Milliseconds since a process ended as it may only do together with the others. */
  #waited = 0;
  #wake = () => {};

  constructor(readonly folder: string, readonly job: Job, readonly options: Watching) {
    this.#pulses = job.adapters.map(() => ({ time: undefined, silence: 0 }));
  }

  /** Updates done, and the run's folder once it is known. */
  get beat(): Beat {
    return this.#beat;
  }

  start(): void {
    const { job: { adapters, isolation }, options: { start }, folder } = this;
    const ranks = [...adapters.keys()];
    const alone = isolation === "process";
    for (const own of alone ? ranks.map((rank) => [rank]) : [ranks]) {
      const member: Member = { ranks: own, child: start(folder, alone ? own[0] : null), status: undefined };
      this.#members.push(member);
      member.child.status.then((status) => {
        member.status = status;
        this.#wake();
      });
    }
  }

  /** Asks rank 0, and so the run, to end after the update at hand. */
  stop(): void {
    if (this.#members.length > 0) kill(this.#members[0], "SIGTERM");
  }

  /** Returns when the job has ended, or is to end at once. */
  async ended(killing: AbortSignal): Promise<Ending> {
    let last = performance.now();
    while (!killing.aborted) {
      await this.#turn(killing);
      const now = performance.now();
      // A supervisor that was stopped itself, as by Ctrl-Z with its whole process group, has missed no beat.
      const passed = Math.min(now - last, 2 * POLL_MS);
      last = now;
      await this.#hear(passed);
      const ending = await this.#judge(passed);
      if (ending !== undefined) return ending;
    }
    return stopped;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const member of this.#members) kill(member, "SIGKILL");
    await Promise.all(this.#members.map(({ child }) => child.status));
  }

  /** Until a process ends, `killing` comes, or it is time to look again. */
  async #turn(killing: AbortSignal): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#wake = resolve;
    const timer = setTimeout(resolve, POLL_MS);
    killing.addEventListener("abort", () => resolve(), { once: true });
    await promise;
    clearTimeout(timer);
  }

  async #hear(passed: number): Promise<void> {
    await Promise.all(this.#pulses.map(async (pulse, rank) => {
      const heard = await readBeat(this.folder, rank);
      pulse.silence = heard?.time === pulse.time ? pulse.silence + passed : 0;
      pulse.time = heard?.time;
      if (heard?.beat === undefined) return;
      const { step, run } = heard.beat;
      if (run !== null && this.#beat.run === null) this.options.onRun?.(run);
      this.#beat = { step: Math.max(step, this.#beat.step), run: run ?? this.#beat.run };
    }));
    if (this.#joined || this.#pulses.some(({ time }) => time === undefined)) return;
    this.#joined = true;
    this.options.onJoined?.();
  }

  async #judge(passed: number): Promise<Ending | undefined> {
    const over = this.#members.filter(({ status }) => status !== undefined);
    for (const member of over) {
      const ending = await blame(this.folder, member);
      if (ending !== undefined) return ending;
    }
    const finished = this.#members[0].status?.success === true;
    const lost = over.some(({ status }) => !status!.success);
    if (finished || lost) {
      this.#waited += passed;
      if (over.length === this.#members.length || this.#waited > PATIENCE_MS) {
        return lost ? fault(null, "ended without a reason") : done;
      }
    }
    return this.#hanging();
  }

  /** Ranks that wait for another one beat too, so the longest silence is that of the rank which hangs. */
  #hanging(): Ending | undefined {
    const living = this.#members.filter(({ status }) => status === undefined).flatMap(({ ranks }) => ranks);
    const silence = (rank: number) => this.#pulses[rank].silence;
    const worst = living.reduce((a, b) => silence(b) > silence(a) ? b : a, living[0]);
    const { hangSeconds } = this.options;
    if (worst === undefined || silence(worst) <= hangSeconds * 1000) return undefined;
    return fault(worst, `gave no sign of life for ${hangSeconds} s`);
  }
}

/** What a process that ended did to the job; undefined where it ended well, or only because another one did. */
async function blame(folder: string, { ranks, status }: Member): Promise<Ending | undefined> {
  const { success, code, signal } = status!;
  if (success) return undefined;
  const failures = await Promise.all(ranks.map((rank) => readFailure(folder, rank)));
  const first = failures.findIndex((failure) => failure !== undefined && failure.kind !== "abandoned");
  if (first >= 0) {
    const { kind, message } = failures[first]!;
    const ending = fault(ranks[first], "failed", message);
    return kind === "user" ? { ...ending, kind, exitCode: code || 1 } : ending;
  }
  // These signals end a process that doesn't listen yet.
  if (code === INTERRUPTED || signal === "SIGINT" || signal === "SIGTERM") return stopped;
  const rank = ranks.length === 1 ? ranks[0] : null;
  if (signal !== null) return fault(rank, `was killed by ${signal}`);
  if (code === ABANDONED || failures.some((failure) => failure !== undefined)) return undefined;
  return fault(rank, `ended with exit code ${code}`);
}

function fault(rank: number | null, how: string, why = ""): Ending {
  return { kind: "fault", exitCode: 1, rank, how, why };
}

function kill({ child, status }: Member, signal: Deno.Signal): void {
  if (status !== undefined) return;
  try {
    child.kill(signal);
  } catch {
    // It ended meanwhile.
  }
}
