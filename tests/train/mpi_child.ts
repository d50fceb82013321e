/** One process of a test under mpirun, alone or with several Workers: leaves word of what its calls gave in a folder. */
import { join } from "node:path";
import { cpuUsage } from "node:process";
import type { Communicator } from "../../train/communicator.ts";
import { hierarchical } from "../../train/hierarchical.ts";
import { type MpiCommunicator, openMpi } from "../../train/mpi.ts";
import { regionBytes, sharedCommunicator, threadRegion } from "../../train/shared_memory.ts";
import { summand, tasks as sharedTasks } from "./rank_tasks.ts";

export interface MpiTask {
  readonly task: keyof typeof tasks;
  readonly folder: string;
  /** Workers in each process; 0 for its main thread. */
  readonly workers: number;
}

/** Values whose sums have no rounding, whatever their order. */
export const wholeNumbers = (rank: number, length: number) => Float32Array.from({ length }, (_, i) => (i % 97) + rank);

const tasks = {
  ...sharedTasks,
  async wholeNumbers(communicator: Communicator) {
    const data = wholeNumbers(communicator.rank, 70_001);
    await communicator.allReduce(data);
    return [...new Set(data.map((sum, i) => sum - communicator.size * (i % 97)))];
  },
  async bits(communicator: Communicator) {
    const data = summand(communicator.rank, 3000);
    await communicator.allReduce(data);
    return [...new Uint32Array(data.buffer)];
  },
  /** All calls at once, by ranks that come and wait at different times. */
  async overlap(communicator: Communicator) {
    const { rank, size } = communicator;
    const lengths = [400_000, 1, 9_000_000, 17, 50_000];
    const arrays = lengths.map((length) => wholeNumbers(rank, length));
    const large = new Uint8Array(200_000).fill(rank);
    const small = new Uint8Array(5).fill(rank);
    const done: number[] = [];
    let turns = 0;
    const turning = setInterval(() => turns++, 1);
    await later(70 * rank);
    const calls: Promise<unknown>[] = arrays.map((data, i) =>
      communicator.allReduce(data).then(() => void done.push(i))
    );
    calls.splice(2, 0, communicator.broadcast(large, size - 1), communicator.broadcast(small, 0));
    await later(30 * (size - rank));
    calls.push(communicator.barrier());
    await Promise.all(calls);
    clearInterval(turning);
    const right = arrays.every((data) => data.every((sum, i) => sum === size * (i % 97) + size * (size - 1) / 2));
    return { right, done, turns: turns > 5, large: large.every((byte) => byte === size - 1), small: [...small] };
  },
  /** The last rank is late. */
  async late(communicator: Communicator) {
    if (communicator.rank === communicator.size - 1) await later(1500);
    const before = cpuUsage();
    await communicator.allReduce(new Float32Array(1000));
    const { user, system } = cpuUsage(before);
    return (user + system) / 1e6;
  },
  async killed(communicator: Communicator) {
    if (communicator.rank === 1) Deno.kill(Deno.pid, "SIGKILL");
    await communicator.allReduce(new Float32Array(1000));
  },
  async aborted(communicator: Communicator) {
    if (communicator.rank === 1) {
      console.error("Cannot go on: rank 1's disk is full");
      (communicator as MpiCommunicator).abort(70);
    }
    await communicator.allReduce(new Float32Array(1000));
  },
  async givenUp(communicator: Communicator) {
    const first = await communicator.allReduce(new Float32Array(1000)).catch(({ message }) => message);
    const later = await communicator.barrier().catch(({ message }) => message);
    return [first, later];
  },
} as const;

const later = (milliseconds: number) => new Promise((resolve) => setTimeout(resolve, milliseconds));

async function run(communicator: Communicator, { task, folder }: MpiTask, waits: () => number): Promise<void> {
  const result = await tasks[task](communicator);
  const file = join(folder, `${communicator.rank}.json`);
  await Deno.writeTextFile(file, JSON.stringify({ result, waits: waits(), size: communicator.size }));
  await communicator[Symbol.asyncDispose]();
}

async function runAlone(job: MpiTask): Promise<void> {
  let waits = 0;
  const onWait = () => {
    waits++;
    if (job.task === "givenUp" && waits > 1) throw new Error("given up");
  };
  const communicator = await openMpi({ onWait });
  if (job.task === "givenUp" && communicator.rank === 0) await later(2000);
  else await run(communicator, job, () => waits);
}

async function runWorkers(job: MpiTask): Promise<void> {
  const memory = new SharedArrayBuffer(regionBytes(job.workers));
  await Promise.all(Array.from({ length: job.workers }, (_, rank) => {
    const worker = new Worker(import.meta.url, { type: "module" });
    const { promise, resolve } = Promise.withResolvers<void>();
    worker.onmessage = () => resolve();
    worker.postMessage({ job, rank, memory });
    return promise.then(() => worker.terminate());
  }));
}

interface Start {
  readonly job: MpiTask;
  readonly rank: number;
  readonly memory: SharedArrayBuffer;
}

if ("onmessage" in globalThis) {
  const scope = globalThis as unknown as { onmessage: unknown; postMessage(message: unknown): void };
  scope.onmessage = async ({ data: { job, rank, memory } }: MessageEvent<Start>) => {
    const local = sharedCommunicator(threadRegion(memory), { rank, size: job.workers });
    const across = rank === 0 ? await openMpi() : null;
    await run(await hierarchical(local, across), job, () => 0);
    scope.postMessage("done");
  };
} else if (Deno.args.length > 0) {
  const job: MpiTask = JSON.parse(Deno.args[0]);
  await (job.workers === 0 ? runAlone(job) : runWorkers(job));
}
