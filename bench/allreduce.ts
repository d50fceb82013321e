/** How fast ranks of one machine sum what they hold, against copying the same bytes once. It opens no adapter. */
import { fileURLToPath } from "node:url";
import { BUCKET_BYTES } from "../train/buckets.ts";
import { type Isolation, isolations, type Wire, wires } from "../train/job.ts";
import { createSharedFile } from "../train/posix_memory.ts";
import { regionBytes } from "../train/shared_memory.ts";
import type { Place } from "./allreduce_rank.ts";
import { openChild } from "./child.ts";
import {
  alternate,
  type Bench,
  type BenchOptions,
  type Contender,
  contender,
  median,
  resultOf,
  select,
} from "./harness.ts";

const REPEATS = 5;

/** Parameters of GPT-2 124 M. */
const GPT2 = 124_439_808;

interface Case {
  readonly name: string;
  readonly size: number;
  readonly elements: number;
  readonly isolation: Isolation;
  readonly wire: Wire;
}

const CASES: readonly Case[] = isolations.flatMap((isolation) =>
  wires.flatMap((wire) =>
    [[2, GPT2], [4, GPT2], [2, 1 << 20]].map(([size, elements]) => ({
      name: `${size} ${isolation === "worker" ? "Workers" : "processes"}, ${
        (elements / 1e6).toFixed(0)
      } M values in ${wire}`,
      size,
      elements,
      isolation,
      wire,
    }))
  )
);

/** `124 M values` between ranks: GB/s are the bytes of one rank's values over the time until all have the sum. */
export async function benchAllreduce(options: BenchOptions): Promise<Bench> {
  const repeats = options.repeats ?? REPEATS;
  const results: Bench["results"][number][] = [];
  for (const shape of select(CASES, options.case)) {
    options.progress(shape.name);
    const bytes = shape.elements * (shape.wire === "f32" ? 4 : 2);
    await using ranks = await openRanks(shape);
    const [own, copies] = await alternate([ranks, copying(bytes)], repeats);
    results.push({
      ...resultOf(shape.name, own, { bytes }),
      ratio: { "a copy": median(copies) / median(own) },
    });
  }
  return { name: "allreduce", config: { repeats, "bucket bytes": BUCKET_BYTES }, results };
}

/** A plain copy of the bytes by one thread, bucket by bucket. */
function copying(bytes: number): Contender {
  const [from, to] = [new Uint8Array(2 * BUCKET_BYTES), new Uint8Array(2 * BUCKET_BYTES)];
  return contender("a copy", () => {
    for (let left = bytes, slot = 0; left > 0; left -= BUCKET_BYTES, slot ^= 1) {
      const at = slot * BUCKET_BYTES;
      to.set(from.subarray(at, at + Math.min(left, BUCKET_BYTES)), at);
    }
  });
}

/** All ranks as one contender: as slow as the slowest. */
async function openRanks(shape: Case): Promise<Contender> {
  await using opened = new AsyncDisposableStack();
  const places = Array.from({ length: shape.size }, (_, rank): Place => ({ ...shape, rank }));
  const ranks = shape.isolation === "worker" ? threads(places) : await processes(places, opened);
  for (const rank of ranks) opened.use(rank);
  const held = opened.move();
  return {
    name: shape.name,
    run: async () => Math.max(...await Promise.all(ranks.map((rank) => rank.run()))),
    [Symbol.asyncDispose]: () => held.disposeAsync(),
  };
}

function threads(places: readonly Place[]): Contender[] {
  const memory = new SharedArrayBuffer(regionBytes(places.length));
  return places.map((place) => {
    const worker = new Worker(new URL("./allreduce_rank.ts", import.meta.url), { type: "module" });
    worker.postMessage({ place, memory });
    return {
      name: `rank ${place.rank}`,
      run() {
        const { promise, resolve } = Promise.withResolvers<number>();
        worker.onmessage = ({ data }) => resolve(data);
        worker.postMessage("run");
        return promise;
      },
      [Symbol.asyncDispose]: () => Promise.resolve(worker.terminate()),
    };
  });
}

async function processes(places: readonly Place[], opened: AsyncDisposableStack): Promise<Contender[]> {
  const { name } = opened.use(createSharedFile(regionBytes(places.length)));
  const script = fileURLToPath(new URL("./allreduce_rank.ts", import.meta.url));
  return await Promise.all(places.map((place) =>
    openChild({
      name: `rank ${place.rank}`,
      command: Deno.execPath(),
      args: ["run", "--no-prompt", "--allow-ffi", script, "process", name, JSON.stringify(place)],
    })
  ));
}
