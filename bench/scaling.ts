/**
 * What a second rank brings: one rank against two that share each update, each a process with one thread of the driver where
 * that is a CPU's. It times whole steps and looks into none.
 */
import { fileURLToPath } from "node:url";
import { openDevice } from "../kernels/gpu/device.ts";
import { driverOf } from "../train/adapters.ts";
import { createSharedFile } from "../train/posix_memory.ts";
import { regionBytes } from "../train/shared_memory.ts";
import { openChild } from "./child.ts";
import { alternate, type Bench, type BenchOptions, type Contender, median, resultOf, select } from "./harness.ts";
import type { Place } from "./scaling_rank.ts";
import { STEPS, type StepWork } from "./work.ts";

const REPEATS = 5;
const RANKS = 2;

/** Threads of Mesa's CPU driver in a rank. */
const ENVIRONMENT = { LP_NUM_THREADS: "1" };

const CASES = STEPS.filter(({ precision }) => precision === "f32");

export async function benchScaling(options: BenchOptions): Promise<Bench> {
  const repeats = options.repeats ?? REPEATS;
  const results: Bench["results"][number][] = [];
  const notes: string[] = [];
  for (const work of select(CASES, options.case)) {
    options.progress(work.name);
    await using one = await openRanks("1 rank", work, 1, false);
    await using together = await openRanks("2 ranks", work, RANKS, true);
    await using apart = await openRanks("2 ranks, each for itself", work, RANKS, false);
    const [single, shared, separate] = await alternate([one, together, apart], repeats);
    const tokens = work.rows * work.context;
    const [alone, both, beside] = [single, shared, separate].map(median);
    results.push(
      resultOf(`${work.name}, 1 rank`, single, { tokens }),
      { ...resultOf(`${work.name}, 2 ranks`, shared, { tokens: RANKS * tokens }), ratio: { "1 rank": alone / both } },
      resultOf(`${work.name}, 2 ranks, each for itself`, separate, { tokens: RANKS * tokens }),
    );
    notes.push(
      `${work.name}: efficiency ${(alone / both).toFixed(2)}; of 2 ranks that don't meet ${
        (alone / beside).toFixed(2)
      }; ` +
        `meeting takes ${(both - beside).toFixed(0)} ms of ${both.toFixed(0)}`,
    );
  }
  using device = await openDevice();
  const config = { repeats, ranks: RANKS, "threads a rank": 1 };
  return { name: "scaling", adapter: device.name, driver: driverOf(device.info), config, results, notes };
}

/** Ranks as one contender, as slow as the slowest. */
async function openRanks(name: string, work: StepWork, size: number, meet: boolean): Promise<Contender> {
  await using opened = new AsyncDisposableStack();
  const memory = meet ? opened.use(createSharedFile(regionBytes(size))).name : null;
  const script = fileURLToPath(new URL("./scaling_rank.ts", import.meta.url));
  const permissions = ["--allow-ffi", "--allow-env", "--allow-read"];
  const ranks = await Promise.all(Array.from({ length: size }, async (_, rank) => {
    const place: Place = { work, rank, size, memory };
    const args = ["run", "--no-prompt", ...permissions, script, JSON.stringify(place)];
    return opened.use(await openChild({ name, command: Deno.execPath(), args, env: ENVIRONMENT }));
  }));
  const held = opened.move();
  return {
    name,
    run: async () => Math.max(...await Promise.all(ranks.map((rank) => rank.run()))),
    [Symbol.asyncDispose]: () => held.disposeAsync(),
  };
}
