/**
 * Keeps a run going: starts the ranks of a job, and after a fault starts them again from the last checkpoint. It trains
 * nothing and opens no device.
 */
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import project from "../deno.json" with { type: "json" };
import type { AdapterChoice } from "../kernels/gpu/adapters.ts";
import { UserError } from "../model/errors.ts";
import type { Settings } from "./config.ts";
import type { Console } from "./console.ts";
import { denoCommand, permissionsOf } from "./deno_process.ts";
import { type Beat, INTERRUPTED, type Job, writeJob } from "./job.ts";
import { makeJobFolder } from "./job_folder.ts";
import { type Ending, JobWatch, type StartRanks } from "./job_watch.ts";
import { createSharedFile } from "./posix_memory.ts";
import { resumeCommand } from "./run_folder.ts";
import { regionBytes } from "./shared_memory.ts";
import { findCheckpoint } from "./state.ts";
import { listenForStop } from "./stop.ts";

/** Exit code of a user error that says that there is no such adapter. */
const NO_ADAPTER = 3;
const LONGEST_WAIT_S = 60;

export interface Supervising {
  readonly console: Pick<Console, "line">;
  /** Default: `train/main.ts rank`, with the permissions of the train task. */
  readonly start?: StartRanks;
  /** Hears the run's folder as soon as it is known. */
  readonly onRun?: (run: string) => void;
}

/**
 * Trains on these adapters, a rank each, until the run is done, stopped, or can't go on.
 *
 * @returns the exit code; why it isn't 0 was said.
 * @throws UserError where no job can be started or no checkpoint be gone on from.
 */
export async function supervise(
  settings: Settings,
  adapters: readonly AdapterChoice[],
  supervising: Supervising,
): Promise<number> {
  const { console } = supervising;
  const { maxRestarts } = settings.config;
  const signals = { stopping: new AbortController(), killing: new AbortController() };
  using stop = listenForStop((line) => {
    console.line(line);
    signals.stopping.abort();
  }, () => signals.killing.abort());
  stop.listen();
  const stopping = signals.stopping.signal;
  let plan: Plan = { adapters, faults: [] };
  let run: string | null = null;
  for (;;) {
    const { ending, beat } = await runJob(resuming(settings, run), plan.adapters, signals, supervising);
    run = beat.run ?? run;
    if (endsAll(ending, plan)) return ending.exitCode;
    const wayOn = run === null ? "no run had begun" : `go on with: ${resumeCommand(run)}`;
    const stopped = (when: string) => {
      console.line(`stopped ${when}; ${wayOn}`);
      return INTERRUPTED;
    };
    if (ending.kind === "stopped") return stopped("at once");
    const said = describeFault(ending, plan.adapters, beat);
    const next = stopping.aborted ? undefined : afterFault(plan, ending.rank, maxRestarts);
    if (next === undefined) {
      const why = stopping.aborted ? "it was to stop" : `giving up after ${plural(maxRestarts, "restart")}`;
      console.line(`error: ${said}; ${why}; ${wayOn}`);
      return ending.exitCode;
    }
    console.line(`${said}; ${await describeNext(next, run, maxRestarts)}`);
    plan = next;
    await delay(next.wait * 1000, undefined, { signal: stopping }).catch(() => {});
    if (stopping.aborted) return stopped("before going on");
  }
}

/** Whether there is nothing to add and to do: all is done, or a user must mend something and was told by the rank. */
function endsAll({ kind, exitCode }: Ending, { faults }: Plan): boolean {
  // An adapter that is missing after a fault is one that the fault took away.
  return kind === "done" || (kind === "user" && !(faults.length > 0 && exitCode === NO_ADAPTER));
}

/** Which adapters train, and whose faults there were. */
export interface Plan {
  /** One a rank. */
  readonly adapters: readonly AdapterChoice[];
  /** Adapter of each fault; null where that couldn't be told. */
  readonly faults: readonly (string | null)[];
}

export interface NextPlan extends Plan {
  /** Seconds to wait before. */
  readonly wait: number;
  /** Name of an adapter that is used no more; null where there is none. */
  readonly leftOut: string | null;
}

/**
 * What to do after a fault of this rank: another try, after a wait that doubles each time; without the rank's adapter where
 * it was its second fault and there are others.
 *
 * @returns undefined where there were enough.
 */
export function afterFault(plan: Plan, rank: number | null, maxRestarts: number): NextPlan | undefined {
  if (plan.faults.length >= maxRestarts) return undefined;
  const blamed = rank === null ? null : plan.adapters[rank];
  const others = blamed === null ? [] : plan.adapters.filter((adapter) => boardOf(adapter) !== boardOf(blamed));
  const again = blamed !== null && plan.faults.includes(boardOf(blamed));
  const leaves = again && others.length > 0;
  return {
    adapters: leaves ? others : plan.adapters,
    faults: [...plan.faults, blamed === null ? null : boardOf(blamed)],
    wait: Math.min(LONGEST_WAIT_S, 2 ** plan.faults.length),
    leftOut: leaves ? blamed.name : null,
  };
}

function boardOf({ id, name }: AdapterChoice): string {
  return id ?? name;
}

function describeFault({ rank, how, why }: Ending, adapters: readonly AdapterChoice[], { step }: Beat): string {
  const one = rank ?? (adapters.length === 1 ? 0 : null);
  const who = one === null ? `one of ${adapters.length} ranks` : `rank ${one} (${adapters[one].name})`;
  const when = step === 0 ? "before its first step" : `after step ${step}`;
  return `${who} ${how} ${when}${why === "" ? "" : `: ${why.replace(/\.$/, "")}`}`;
}

async function describeNext({ faults, wait, leftOut, adapters }: NextPlan, run: string | null, maxRestarts: number) {
  const checkpoint = run === null ? undefined : await findCheckpoint(run, () => {});
  const from = checkpoint === undefined ? "starting again" : `going on from step ${checkpoint.state.step}`;
  const ranks = plural(adapters.length, "rank");
  const without = leftOut === null ? "" : `, without ${leftOut} as that was its second fault, with ${ranks}`;
  return `${from}${without} (restart ${faults.length} of ${maxRestarts}, in ${wait} s)`;
}

function plural(count: number, one: string): string {
  return `${count} ${one}${count === 1 ? "" : "s"}`;
}

/** The settings that go on with a run, as if `--resume` had been given; as they are where there is none yet. */
function resuming(settings: Settings, run: string | null): Settings {
  if (run === null) return settings;
  const goingOn = { out: run, resume: true };
  // A new run's own settings stand in its folder. What a resumed run was to change may not stand there yet.
  const changes = settings.config.resume ? settings.given : {};
  return {
    config: { ...settings.config, ...goingOn },
    given: { ...changes, ...goingOn },
    written: settings.config.resume ? { ...settings.written, ...goingOn } : goingOn,
  };
}

interface Signals {
  /** The run is to end after the update at hand. */
  readonly stopping: AbortController;
  /** It is to end now. */
  readonly killing: AbortController;
}

/** Runs a job from its start to its end in a folder of its own, and leaves neither processes nor files of it. */
async function runJob(
  settings: Settings,
  adapters: readonly AdapterChoice[],
  { stopping: { signal: stopping }, killing: { signal: killing } }: Signals,
  { start = startRanks, onRun }: Supervising,
): Promise<{ readonly ending: Ending; readonly beat: Beat }> {
  const { isolation, hangSeconds } = settings.config;
  using made = await makeJobFolder();
  const folder = made.path;
  using memory = new DisposableStack();
  const shares = isolation === "process" && adapters.length > 1;
  const sharedMemory = shares ? memory.use(createSharedFile(regionBytes(adapters.length))).name : null;
  const job: Job = { settings, adapters, isolation, sharedMemory, supervisor: Deno.pid };
  await writeJob(folder, job);
  await using watch = new JobWatch(folder, job, { start, hangSeconds, onRun, onJoined: () => memory.dispose() });
  watch.start();
  const askToStop = () => watch.stop();
  stopping.addEventListener("abort", askToStop);
  if (stopping.aborted) askToStop();
  const ending = await watch.ended(killing);
  stopping.removeEventListener("abort", askToStop);
  return { ending, beat: watch.beat };
}

/** What the train task permits, but for starting processes. */
const PERMISSIONS = permissionsOf(project.tasks.train.command);

/** A process of the job in a folder: all its ranks, or one. @throws UserError where this process may not start Deno. */
export function startRanks(folder: string, rank: number | null): Deno.ChildProcess {
  const [config, main] = ["../deno.json", "./main.ts"].map((path) => fileURLToPath(new URL(path, import.meta.url)));
  const numbers = rank === null ? [] : [`${rank}`];
  try {
    return new Deno.Command(denoCommand(), {
      args: ["run", "--config", config, ...PERMISSIONS, main, "rank", folder, ...numbers],
      stdin: "null",
    }).spawn();
  } catch (error) {
    if (!(error instanceof Deno.errors.NotCapable)) throw error;
    throw new UserError("Cannot start ranks: run this as `deno task train`, with deno in the PATH", 4);
  }
}
