/** A process of a job: one rank in its own thread, or all ranks as Workers. It supervises nothing. */
import { ABANDONED, FAULT, INTERRUPTED, type Job, readJob, writeFailure } from "./job.ts";
import { openPosixRegion } from "./posix_memory.ts";
import { runSupervisedRank } from "./rank.ts";
import type { RankMessage, RankNews } from "./rank_worker.ts";
import { abandon, regionBytes, requestStop, threadRegion } from "./shared_memory.ts";
import { ignoreStop, listenToSupervisor, type Stop } from "./stop.ts";

/** Milliseconds that Workers have to end after one of them failed. */
const PATIENCE = 5000;

/**
 * Runs a rank of the job in this folder, or all of its ranks.
 *
 * @param end ends the process at once.
 * @returns the exit code.
 */
export async function runJobProcess(
  folder: string,
  rank: number | null,
  end: (code: number) => never,
): Promise<number> {
  const job = await readJob(folder);
  if (rank === null && job.adapters.length > 1) {
    return await runWorkers(job, folder, end, (wish) => listenToSupervisor(wish, () => end(INTERRUPTED)));
  }
  return await runHere(job, folder, rank ?? 0, end);
}

async function runHere(job: Job, folder: string, rank: number, end: (code: number) => never): Promise<number> {
  using stop = rank === 0 ? listenToSupervisor(() => {}, () => end(INTERRUPTED)) : ignoreStop();
  const { sharedMemory, adapters } = job;
  using region = sharedMemory === null ? null : openPosixRegion(sharedMemory, regionBytes(adapters.length));
  return await runSupervisedRank({ job, folder, rank, region, stop, onOrphaned: () => end(ABANDONED) });
}

/**
 * Runs all ranks of a job as Workers of this process.
 *
 * @param folder the job's, where a supervisor watches.
 * @param listen begins to hear signals; what it is given is called when the run is to stop.
 */
export async function runWorkers(
  job: Job,
  folder: string | null,
  end: (code: number) => never,
  listen: (wish: () => void) => Stop,
): Promise<number> {
  const memory = new SharedArrayBuffer(regionBytes(job.adapters.length));
  using region = threadRegion(memory);
  using stop = listen(() => requestStop(region));
  let patience: ReturnType<typeof setTimeout> | undefined;
  const codes = await Promise.all(job.adapters.map((_, rank) => {
    return runWorker({ job, folder, rank, memory }, (news) => {
      if ("listening" in news) stop.listen();
      else if ("orphaned" in news) end(ABANDONED);
      else if (news.exitCode !== 0) patience ??= setTimeout(() => end(news.exitCode), PATIENCE);
    }, () => abandon(region));
  }));
  clearTimeout(patience);
  // What a user can mend says most, then a fault; that others were abandoned only follows from these.
  const worst = (code: number) => [0, ABANDONED, FAULT].indexOf(code);
  return codes.find((code) => worst(code) < 0) ?? codes.reduce((a, b) => worst(b) > worst(a) ? b : a, 0);
}

/**
 * A rank as a Worker, which stays until the process ends: taken down just before, some drivers crash the process.
 *
 * @param onFault called where the Worker dies without a word.
 * @returns its exit code.
 */
function runWorker(message: RankMessage, onNews: (news: RankNews) => void, onFault: () => void): Promise<number> {
  const worker = new Worker(new URL("./rank_worker.ts", import.meta.url), { type: "module" });
  return new Promise((resolve) => {
    const ended = (exitCode: number) => {
      onNews({ exitCode });
      resolve(exitCode);
    };
    worker.onmessage = ({ data }: MessageEvent<RankNews>) => "exitCode" in data ? ended(data.exitCode) : onNews(data);
    worker.onerror = (event) => {
      event.preventDefault();
      if (message.folder !== null) writeFailure(message.folder, message.rank, new Error(event.message));
      onFault();
      ended(FAULT);
    };
    worker.postMessage(message);
  });
}
