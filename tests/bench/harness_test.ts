/** How benches measure: turns, ratios, failures, peers in processes of their own. No time is asserted. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { openChild } from "../../bench/child.ts";
import {
  alternate,
  compare,
  type Contender,
  median,
  type Peer,
  resultOf,
  select,
  timeMany,
  WARM_UP,
} from "../../bench/harness.ts";

/** Takes its times from a list, and notes that it ran. */
function scripted(name: string, times: number[], log: string[] = []): Contender {
  return {
    name,
    run() {
      log.push(name);
      return Promise.resolve(times.shift() ?? 1000);
    },
    [Symbol.asyncDispose]() {
      log.push(`${name} closed`);
      return Promise.resolve();
    },
  };
}

const quiet = () => {};

Deno.test("medians of odd and even numbers of repeats", () => {
  assert.equal(median([30, 10, 20]), 20);
  assert.equal(median([40, 10, 20, 30]), 25);
});

Deno.test("rates follow from the median", () => {
  const result = resultOf("case", [3, 1, 2], { flops: 4e9, tokens: 10, bytes: 6e6 });
  assert.deepEqual(result, {
    case: "case",
    repeats_ms: [3, 1, 2],
    median_ms: 2,
    mb_per_second: 3000,
    tokens_per_second: 5000,
    gflops: 2000,
  });
});

Deno.test("contenders take turns, and warm-up runs don't count", async () => {
  const log: string[] = [];
  const warmUp = Array.from({ length: WARM_UP }, () => 500);
  const times = await alternate([scripted("a", [...warmUp, 1, 2], log), scripted("b", [...warmUp, 3, 4], log)], 2);
  assert.deepEqual(times, [[1, 2], [3, 4]]);
  assert.deepEqual(log, Array.from({ length: WARM_UP + 2 }, () => ["a", "b"]).flat());
});

Deno.test("a ratio is the peer's median over ours of the same turns; a peer that fails ends nothing", async () => {
  const log: string[] = [];
  const warm = () => Array.from({ length: WARM_UP }, () => 500);
  const peers: Peer[] = [
    { name: "slow", open: () => Promise.resolve({ ...scripted("slow", [...warm(), 40, 60, 50], log), about: "v1" }) },
    { name: "absent", open: () => Promise.reject(new Error("not installed")) },
    { name: "fast", open: () => Promise.resolve(scripted("fast", [...warm(), 10, 10, 10], log)) },
  ];
  const ours = scripted("ours", [...warm(), 10, 10, 10, ...warm(), 20, 20, 20]);
  const { results, failed, peers: about } = await compare({
    name: "case",
    amount: { flops: 2e9 },
    ours,
    peers,
    repeats: 3,
    progress: quiet,
  });
  assert.deepEqual(results.map(({ case: name }) => name), ["case", "case, slow", "case, fast"]);
  assert.deepEqual(results[0].ratio, { slow: 5, fast: 0.5 });
  assert.deepEqual(results[0].repeats_ms, [10, 10, 10, 20, 20, 20]);
  assert.equal(results[1].gflops, 40);
  assert.deepEqual(failed, [{ case: "case, absent", reason: "not installed" }]);
  assert.deepEqual(about, { slow: "v1" });
  assert.ok(log.includes("slow closed") && log.includes("fast closed"));
});

Deno.test("without a peer ours is measured alone", async () => {
  const ours = scripted("ours", [9, 9, 7, 5, 6]);
  const { results } = await compare({ name: "case", amount: {}, ours, peers: [], repeats: 3, progress: quiet });
  assert.deepEqual(results, [{ case: "case", repeats_ms: [7, 5, 6], median_ms: 6 }]);
});

Deno.test("short work is done many times a repeat", async () => {
  const asked: number[] = [];
  const run = timeMany((times) => {
    asked.push(times);
    return Promise.resolve();
  });
  await run();
  await run();
  assert.equal(asked[0], 1);
  assert.ok(asked[1] > 1);
});

Deno.test("cases by name, by a part of it, or an error with code 2", () => {
  const cases = [{ name: "mini" }, { name: "mini-v2048" }, { name: "gpt2" }];
  const names = (filter: string) => select(cases, filter).map(({ name }) => name);
  assert.deepEqual(names("mini"), ["mini"]);
  assert.deepEqual(names("mi"), ["mini", "mini-v2048"]);
  assert.deepEqual(names(""), ["mini", "mini-v2048", "gpt2"]);
  assert.throws(() => names("huge"), { exitCode: 2, message: /found huge, wanted part of mini; mini-v2048; gpt2/ });
});

function fake(kind: string): Promise<Contender> {
  const script = fileURLToPath(new URL("fake_peer.ts", import.meta.url));
  return openChild({ name: kind, command: Deno.execPath(), args: ["run", script, kind], adapter: "here" });
}

Deno.test("a peer in a process of its own answers, whatever else it prints", async () => {
  await using peer = await fake("steady");
  assert.equal(peer.about, "fake 1.0");
  assert.equal(await peer.run(), 3);
  assert.equal(await peer.run(), 3);
});

Deno.test("a peer that dies is quoted", async () => {
  await assert.rejects(fake("mute"), /Error: no such backend/);
});

Deno.test("a peer on another adapter doesn't count", async () => {
  await assert.rejects(fake("elsewhere"), /it ran on another adapter, not on here/);
});

Deno.test("a peer that isn't there fails to open", async () => {
  await assert.rejects(openChild({ name: "none", command: "/nowhere/python3", args: [] }));
});
