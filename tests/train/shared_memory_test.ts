/** Ranks as threads and as processes: the same sums to the last bit, whoever arrives first, and nothing left behind. */
import assert from "node:assert/strict";
import { createSharedFile, openPosixRegion } from "../../train/posix_memory.ts";
import { abandon, regionBytes, threadRegion } from "../../train/shared_memory.ts";
import type { Place } from "./rank_child.ts";
import { LENGTHS, summand } from "./rank_tasks.ts";

const child = new URL("./rank_child.ts", import.meta.url);

async function threads(size: number, task: Place["task"], memory = new SharedArrayBuffer(regionBytes(size))) {
  return await Promise.all(Array.from({ length: size }, (_, rank) => {
    const worker = new Worker(child, { type: "module" });
    return new Promise<{ result: unknown; waits: number }>((resolve) => {
      worker.onmessage = ({ data }) => {
        worker.terminate();
        resolve(data);
      };
      worker.postMessage({ rank, size, task, memory });
    });
  }));
}

function start(path: string, place: Place, stderr: "inherit" | "null" = "inherit"): Deno.ChildProcess {
  const permissions = ["--no-prompt", "--allow-ffi", "--allow-env", "--allow-read"];
  const args = ["run", ...permissions, child.href, path, JSON.stringify(place)];
  return new Deno.Command(Deno.execPath(), { args, stdout: "piped", stderr }).spawn();
}

async function processes(size: number, task: Place["task"]): Promise<unknown[]> {
  using file = createSharedFile(regionBytes(size));
  const children = Array.from({ length: size }, (_, rank) => start(file.name, { rank, size, task }));
  const outputs = await Promise.all(children.map((child) => child.output()));
  return outputs.map(({ stdout }) => JSON.parse(new TextDecoder().decode(stdout)));
}

/** Bits of the sum in rank order, f32 after each addition. */
function expectedHash(size: number, length: number): number {
  const sum = summand(0, length);
  for (let rank = 1; rank < size; rank++) {
    summand(rank, length).forEach((value, i) => sum[i] = Math.fround(sum[i] + value));
  }
  return new Uint8Array(sum.buffer).reduce((hash, byte) => Math.imul(hash ^ byte, 16777619), 2166136261);
}

/** The same of values cut to bf16, rounded to bf16 at the end. */
function expectedBf16(size: number, length: number): Float32Array {
  const cut = (rank: number) => {
    const values = summand(rank, length);
    return new Float32Array(new Uint32Array(values.buffer).map((bits) => bits & 0xffff0000).buffer);
  };
  const sum = cut(0);
  for (let rank = 1; rank < size; rank++) cut(rank).forEach((value, i) => sum[i] = Math.fround(sum[i] + value));
  return sum;
}

Deno.test("sums are taken in rank order and are the same bits on every rank, as threads and as processes", async () => {
  for (const size of [1, 2, 3, 5]) {
    const ranks = (await threads(size, "sums")).map(({ result }) => result as number[][]);
    for (const rank of ranks) assert.deepEqual(rank, ranks[0]);
    LENGTHS.forEach((length, i) => {
      const want = expectedHash(size, length);
      assert.deepEqual(ranks[0][i].slice(0, 2), [want, want], `${size} ranks, ${length} values`);
    });
    if (size === 2 || size === 3) assert.deepEqual(await processes(size, "sums"), ranks);
  }
});

Deno.test("sums of bf16 are rounded once, to nearest even", async () => {
  const { sumInPlace } = await import("../../train/summing.ts");
  const length = 5000;
  const arrays = [0, 1, 2].map((rank) => {
    return Uint16Array.from(new Uint32Array(summand(rank, length).buffer), (bits) => bits >>> 16);
  });
  sumInPlace(arrays);
  expectedBf16(3, length).forEach((want, i) => {
    const [got] = new Float32Array(Uint32Array.of(arrays[0][i] << 16).buffer);
    const [wanted] = new Uint32Array(Float32Array.of(want).buffer);
    const below = new Float32Array(Uint32Array.of(wanted & 0xffff0000).buffer)[0];
    const above = new Float32Array(Uint32Array.of((wanted & 0xffff0000) + 0x10000).buffer)[0];
    const nearest = Math.abs(want - below) === Math.abs(above - want)
      ? (wanted & 0x10000) === 0 ? below : above
      : Math.abs(want - below) < Math.abs(above - want)
      ? below
      : above;
    assert.equal(got, nearest, `value ${i}`);
  });
  assert.deepEqual(arrays[1], arrays[0]);
  assert.deepEqual(arrays[2], arrays[0]);
});

Deno.test("infinities and NaN add up as IEEE 754 has it", async () => {
  for (const { result } of await threads(3, "special")) assert.deepEqual(result, ["Infinity", "NaN", "NaN", "0"]);
});

Deno.test("what one rank sends reaches all, longer than the memory it goes through", async () => {
  const all = [0, 1, 2].map((rank) => ({ rank, text: "é".repeat(rank) }));
  for (const { result } of await threads(3, "broadcasts")) assert.deepEqual(result, [true, all]);
  for (const result of await processes(2, "broadcasts")) assert.deepEqual(result, [true, all.slice(0, 2)]);
});

Deno.test("ranks that make different calls are told so instead of taking each other's bytes", async () => {
  const [first, second] = await threads(2, "mixes");
  assert.equal(
    first.result,
    "Ranks are out of step: rank 1 came with broadcast of 3 bytes, rank 0 with sum of 16 bytes",
  );
  assert.equal(
    second.result,
    "Ranks are out of step: rank 0 came with sum of 16 bytes, rank 1 with broadcast of 3 bytes",
  );
});

Deno.test("ranks that wait look after their hearts, and give up when they are abandoned", async () => {
  const memory = new SharedArrayBuffer(regionBytes(3));
  const region = threadRegion(memory);
  const waiting = [0, 1].map((rank) => {
    const worker = new Worker(child, { type: "module" });
    return new Promise<{ result: string; waits: number }>((resolve) => {
      worker.onmessage = ({ data }) => {
        worker.terminate();
        resolve(data);
      };
      worker.postMessage({ rank, size: 3, task: "waits", memory });
    });
  });
  await new Promise((resolve) => setTimeout(resolve, 700));
  abandon(region);
  for (const { result, waits } of await Promise.all(waiting)) {
    assert.equal(result, "Abandoned");
    assert.ok(waits >= 1, `waited without a beat`);
  }
});

Deno.test("shared memory has no name left once its maker disposed of it, though processes still use it", async () => {
  const file = createSharedFile(regionBytes(2));
  assert.match(file.name, /^(shm:)?\//);
  const mine = openPosixRegion(file.name, regionBytes(2));
  const first = start(file.name, { rank: 0, size: 2, task: "sums" }, "null");
  const words = new Int32Array(mine.buffer);
  while (Atomics.load(words, 0) === 0) await new Promise((resolve) => setTimeout(resolve, 20)); // it waits for the other
  file[Symbol.dispose]();
  assert.throws(() => openPosixRegion(file.name, regionBytes(2)), /Cannot map/);
  abandon(mine);
  const { stdout, code } = await first.output();
  assert.equal(stdout.length, 0);
  assert.equal(code, 1);
  mine[Symbol.dispose]();
});
