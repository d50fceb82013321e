/** A rank as a Worker: takes its place in a job by message and answers with its exit code. It knows no training. */
import { readJob } from "./job.ts";
import { runSupervisedRank } from "./rank.ts";
import { stopRequested, threadRegion } from "./shared_memory.ts";

/** What the process tells a Worker. */
export interface RankMessage {
  /** The job's folder. */
  readonly folder: string;
  readonly rank: number;
  readonly memory: SharedArrayBuffer;
}

/** What a Worker tells its process. */
export type RankNews = { readonly listening: true } | { readonly orphaned: true } | { readonly exitCode: number };

const scope = self as unknown as {
  onmessage: (event: MessageEvent<RankMessage>) => void;
  postMessage(news: RankNews): void;
};

scope.onmessage = async ({ data: { folder, rank, memory } }) => {
  const region = threadRegion(memory);
  const exitCode = await runSupervisedRank({
    job: await readJob(folder),
    folder,
    rank,
    region,
    stop: {
      get requested() {
        return stopRequested(region);
      },
      listen: () => scope.postMessage({ listening: true }),
    },
    onOrphaned: () => scope.postMessage({ orphaned: true }),
  });
  scope.postMessage({ exitCode });
};
