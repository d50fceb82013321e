/** A process that mpirun started: trains together with the others, on its adapters of the machine. It supervises nothing. */
import type { AdapterChoice } from "../kernels/gpu/adapters.ts";
import { createConsole } from "./console.ts";
import type { Settings } from "./config.ts";
import { INTERRUPTED, type Job } from "./job.ts";
import { runWorkers } from "./job_process.ts";
import { runMpiRank } from "./rank.ts";
import { ignoreStop, listenForStop, type Stop } from "./stop.ts";

/**
 * Trains on these adapters or, where mpirun started several processes on this machine, on this one's.
 *
 * @param end ends the process at once.
 * @returns the exit code.
 */
export async function runMpiProcess(
  settings: Settings,
  adapters: readonly AdapterChoice[],
  end: (code: number) => never,
): Promise<number> {
  const [process, processes, rank] = placeHere((name) => Deno.env.get(name));
  const own = adaptersOf(adapters, process, processes);
  const job: Job = { settings, adapters: own, isolation: "worker", sharedMemory: null, supervisor: Deno.pid };
  const listen = (wish: () => void): Stop => {
    if (rank > 0) return ignoreStop();
    const console = createConsole();
    return listenForStop((line) => {
      console.line(line);
      wish();
    }, () => end(INTERRUPTED));
  };
  if (own.length > 1) return await runWorkers(job, null, end, listen);
  using stop = listen(() => {});
  return await runMpiRank({ job, rank: 0, region: null, stop });
}

/** Variables by which MPI libraries tell a process its number on the machine, how many there are, and its number of all. */
export const placeVariables = [
  ["OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_RANK"],
  ["MPI_LOCALRANKID", "MPI_LOCALNRANKS", "PMI_RANK"],
] as const;

/** Number of this process on its machine, their count, and its number of all; alone where no launcher says. */
export function placeHere(get: (name: string) => string | undefined): readonly number[] {
  const told = placeVariables.find(([first]) => get(first) !== undefined);
  return told?.map((name) => Number(get(name) ?? 0)) ?? [0, 1, 0];
}

/** A process's adapters: every so manieth, or one that it shares where there are more processes than adapters. */
export function adaptersOf<T>(adapters: readonly T[], process: number, processes: number): readonly T[] {
  const own = adapters.filter((_, i) => i % processes === process);
  return own.length > 0 ? own : [adapters[process % adapters.length]];
}
