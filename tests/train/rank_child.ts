/** One rank of a test, as a Worker or a process: says what its task left it with. */
import { openPosixRegion } from "../../train/posix_memory.ts";
import { regionBytes, sharedCommunicator, type SharedRegion, threadRegion } from "../../train/shared_memory.ts";
import { tasks } from "./rank_tasks.ts";

export interface Place {
  readonly rank: number;
  readonly size: number;
  readonly task: keyof typeof tasks;
}

async function run(region: SharedRegion, { rank, size, task }: Place, onWait?: () => void): Promise<unknown> {
  return await tasks[task](sharedCommunicator(region, { rank, size, onWait }));
}

if (import.meta.main && Deno.args.length > 0) {
  const [path, text] = Deno.args;
  const place: Place = JSON.parse(text);
  console.log(JSON.stringify(await run(openPosixRegion(path, regionBytes(place.size)), place)));
} else if ("onmessage" in globalThis) {
  const scope = globalThis as unknown as { onmessage: unknown; postMessage(message: unknown): void };
  scope.onmessage = async ({ data }: MessageEvent<Place & { memory: SharedArrayBuffer }>) => {
    let waits = 0;
    const result = await run(threadRegion(data.memory), data, () => waits++);
    scope.postMessage({ result, waits });
  };
}
