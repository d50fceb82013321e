/** A rank as a Worker: takes its place in a job by message and answers with its exit code. It knows no training. */
import type { Job } from "./job.ts";
import { runMpiRank, runSupervisedRank } from "./rank.ts";
import { stopRequested, threadRegion } from "./shared_memory.ts";

/** What the process tells a Worker. */
export interface RankMessage {
  readonly job: Job;
  /** The job's folder; null in a process that mpirun started. */
  readonly folder: string | null;
  readonly rank: number;
  readonly memory: SharedArrayBuffer;
}

/** What a Worker tells its process. */
export type RankNews = { readonly listening: true } | { readonly orphaned: true } | { readonly exitCode: number };

const scope = self as unknown as {
  onmessage: (event: MessageEvent<RankMessage>) => void;
  postMessage(news: RankNews): void;
};

scope.onmessage = async ({ data: { job, folder, rank, memory } }) => {
  const region = threadRegion(memory);
  const stop = {
    get requested() {
      return stopRequested(region);
    },
    listen: () => scope.postMessage({ listening: true }),
  };
  const onOrphaned = () => scope.postMessage({ orphaned: true });
  const exitCode = folder === null
    ? await runMpiRank({ job, rank, region, stop })
    : await runSupervisedRank({ job, folder, rank, region, stop, onOrphaned });
  scope.postMessage({ exitCode });
};
