/**
 * The temporary folder of a job, locked by the supervisor that made it. What is left of supervisors that were killed together
 * with all their ranks is removed by the next one. It knows no process.
 */
import { dirname, join } from "node:path";
import { explainIo } from "../model/files.ts";
import { readJob } from "./job.ts";
import { removeSharedFile } from "./posix_memory.ts";

const PREFIX = "wgpt-job-";
const LOCK = ".lock";

export interface JobFolder extends Disposable {
  readonly path: string;
}

/** Makes the folder of a job; disposal removes it. @throws UserError where the disk refuses. */
export async function makeJobFolder(): Promise<JobFolder> {
  try {
    const path = await Deno.makeTempDir({ prefix: PREFIX });
    await sweep(dirname(path));
    const lock = await Deno.open(join(path, LOCK), { write: true, create: true });
    await lock.lock(true);
    return {
      path,
      [Symbol.dispose]() {
        lock.close();
        Deno.removeSync(path, { recursive: true });
      },
    };
  } catch (error) {
    throw explainIo("make", "a temporary folder", error);
  }
}

/** Removes folders of jobs whose lock nobody holds, and their shared memory. */
async function sweep(root: string): Promise<void> {
  for await (const { name } of Deno.readDir(root)) {
    if (!name.startsWith(PREFIX)) continue;
    const path = join(root, name);
    try {
      using lock = await Deno.open(join(path, LOCK), { write: true });
      if (!await lock.tryLock(true)) continue;
      const { sharedMemory } = await readJob(path);
      if (sharedMemory !== null) removeSharedFile(sharedMemory);
      await Deno.remove(path, { recursive: true });
    } catch {
      // Another user's, or one that is being made or removed.
    }
  }
}
