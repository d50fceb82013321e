/**
 * One rank of a job from its start to its end, wherever it runs: rank 0 leads the run, the others follow. It starts no
 * other rank and ends no process.
 */
import { openAdapter, refuseSharedBoard } from "../kernels/gpu/adapters.ts";
import { UserError } from "../model/errors.ts";
import { reportFailure } from "../model/report.ts";
import { Abandoned, alone, type Communicator, gatherJson } from "./communicator.ts";
import { type Console, createConsole } from "./console.ts";
import { openRankLearner, type RankPlace } from "./gpu_learner.ts";
import { hierarchical } from "./hierarchical.ts";
import { ABANDONED, FAULT, Heart, type Job, writeFailure } from "./job.ts";
import { train } from "./loop.ts";
import { type MpiCommunicator, openMpi } from "./mpi.ts";
import { follow, leading, type OpenRankLearner } from "./parallel.ts";
import { abandon, sharedCommunicator, type SharedRegion } from "./shared_memory.ts";
import type { Stop } from "./stop.ts";

export interface RankOptions {
  readonly job: Pick<Job, "settings" | "adapters">;
  /** Number of its adapter in the job. */
  readonly adapter: number;
  readonly communicator: Communicator;
  /** The ranks of this process or machine; they open their devices in turn. Default: all. */
  readonly local?: Communicator;
  readonly stop: Pick<Stop, "requested" | "listen">;
  /** Hears where the run stands. */
  readonly onProgress?: (run: string, step: number) => void;
  /** Opens its device and model. Default: on its adapter. */
  readonly open?: (place: RankPlace) => OpenRankLearner;
}

/**
 * Lives a rank's life.
 *
 * @throws UserError where a user can mend what is wrong, Abandoned where another rank ended, else any Error.
 */
export async function runRank(options: RankOptions): Promise<void> {
  const { job: { settings, adapters }, adapter, communicator, stop, onProgress, open = openRankLearner } = options;
  const { rank, size } = communicator;
  const choice = adapters[adapter];
  const device = await inTurn(options.local ?? communicator, () => openAdapter(choice));
  const { maxBufferSize, maxStorageBufferBindingSize } = device.capabilities.limits;
  const opened = await gatherJson(communicator, {
    choice,
    board: device.board,
    limits: { maxBufferSize, maxStorageBufferBindingSize },
  });
  refuseSharedBoard(opened);
  // Variables must lie alike on all ranks: what they exchange is named by where it lies.
  device.restrict({
    maxBufferSize: Math.min(...opened.map(({ limits }) => limits.maxBufferSize)),
    maxStorageBufferBindingSize: Math.min(...opened.map(({ limits }) => limits.maxStorageBufferBindingSize)),
  });
  const names = opened.map(({ choice: { name } }) => name);
  const opening = open({
    openDevice: () => Promise.resolve(device),
    communicator,
    // Unlike adapters round differently: each parameter is updated by one rank, so that all hold the same bits.
    shard: settings.config.shardOptimizer || new Set(names).size > 1,
  });
  if (rank > 0) return await follow(communicator, opening, followersConsole(rank));
  const openLearner = leading(communicator, opening);
  await train(settings, { openLearner, console: createConsole(), stop, ranks: size, onProgress });
}

/** Opens one rank's device after the other's: in one process the environment that picks an adapter is everyone's. */
async function inTurn<T>(communicator: Communicator, open: () => Promise<T>): Promise<T> {
  let opened: T | undefined;
  for (let turn = 0; turn < communicator.size; turn++) {
    if (turn === communicator.rank) opened = await open();
    await communicator.barrier();
  }
  return opened!;
}

/** Of a rank that follows only lines are heard, with its number before them. */
function followersConsole(rank: number): Pick<Console, "line" | "status"> {
  const console = createConsole();
  return { line: (text) => console.line(`rank ${rank}: ${text}`), status: () => {} };
}

/** A rank of a process that mpirun started. */
export interface MpiRank extends Pick<RankOptions, "job" | "stop"> {
  /** Its number in the process. */
  readonly rank: number;
  /** What the process's ranks share; null where there is but one. */
  readonly region: SharedRegion | null;
}

/** Lives a rank's life under mpirun, and ends all ranks where it fails. @returns the exit code. */
export async function runMpiRank({ job, rank, region, stop }: MpiRank): Promise<number> {
  const local = region === null ? alone() : sharedCommunicator(region, { rank, size: job.adapters.length });
  let across: MpiCommunicator | null = null;
  try {
    if (rank === 0) across = await openMpi();
    await using communicator = await hierarchical(local, across);
    await runRank({ job, adapter: rank, communicator, local, stop });
    return 0;
  } catch (error) {
    if (region !== null) abandon(region);
    const code = error instanceof Abandoned ? ABANDONED : reportFailure(error);
    across?.abort(code);
    return code;
  }
}

/** A rank under a supervisor: where it runs, and how it is reached. */
export interface SupervisedRank extends Pick<RankOptions, "stop" | "open"> {
  readonly job: Job;
  /** The job's folder. */
  readonly folder: string;
  readonly rank: number;
  /** What the job's ranks share; null for one that is alone. */
  readonly region: SharedRegion | null;
  /** Called where the supervisor is gone. */
  readonly onOrphaned: () => void;
}

/** Milliseconds between beats of a rank's heart while its thread turns. */
const PULSE = 500;

/** Lives a rank's life under a supervisor, and leaves word where it fails. @returns the exit code. */
export async function runSupervisedRank(options: SupervisedRank): Promise<number> {
  const { job, folder, rank, region, onOrphaned } = options;
  const heart = new Heart(folder, rank, job);
  const pulse = setInterval(() => {
    try {
      heart.beat();
    } catch {
      onOrphaned();
    }
  }, PULSE);
  try {
    heart.beat();
    const onWait = () => heart.beat();
    await using communicator = region === null
      ? alone()
      : sharedCommunicator(region, { rank, size: job.adapters.length, onWait });
    await runRank({ ...options, adapter: rank, communicator, onProgress: (run, step) => heart.beat({ run, step }) });
    return 0;
  } catch (error) {
    if (region !== null) abandon(region);
    writeFailure(folder, rank, error);
    if (error instanceof UserError || Deno.env.get("WGPT_DEBUG")) return reportFailure(error);
    return error instanceof Abandoned ? ABANDONED : FAULT;
  } finally {
    clearInterval(pulse);
  }
}
