/** A profile: measured kernels are those of the step, their costs the ops' own, and the run's bits as without it. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { Graph } from "../../kernels/gpu/graph.ts";
import { formatProfile, openProfiler, type ProfileRow } from "../../kernels/gpu/profile.ts";
import { compile } from "../../kernels/gpu/program.ts";
import { createStore } from "../../kernels/gpu/store.ts";
import { matmul } from "../../kernels/matmul.ts";
import { openLearner } from "../../train/gpu_learner.ts";
import { randomF32, testDevice } from "../harness.ts";
import { bits, makeData, runTraining } from "./runs.ts";

const FLAGS = [
  ...["--context", "32", "--n-layer", "1", "--n-head", "2", "--n-embd", "32", "--micro-batch", "3"],
  ...["--batch-tokens", "192", "--steps", "4", "--learning-rate", "0.01", "--eval-every", "0", "--eval-batches", "1"],
  ...["--sample-every", "0", "--sample-tokens", "2", "--checkpoint-every", "0", "--tune", "off"],
];

const sum = (rows: readonly ProfileRow[], value: (row: ProfileRow) => number) =>
  rows.reduce((total, row) => total + value(row), 0);

Deno.test("a measured program computes what it always does, and its rows add up to its calls", async () => {
  const device = await testDevice();
  const graph = new Graph();
  const [a, b] = [graph.input("a", [64, 128]), graph.input("b", [128, 192])];
  const first = matmul(a, b);
  const product = matmul(first, graph.input("c", [64, 192]), { transposeB: true });
  using store = createStore(device);
  using program = await compile(device, graph, { product }, store, { choose: () => 0 });
  const inputs = { a: randomF32(64 * 128, 1), b: randomF32(128 * 192, 2), c: randomF32(64 * 192, 3) };
  program.run(inputs);
  const [expected] = await program.read("product");
  program.run({ a: new Float32Array(64 * 128) });
  using profiler = await openProfiler(device);
  profiler.run(program, inputs);
  profiler.run(program);
  await profiler.settled();
  assert.deepEqual((await program.read("product"))[0], expected);

  const roofline = { flops: 1e9, bytes: 1e12 };
  const rows = profiler.rows(roofline);
  const kernels = rows.filter(({ label }) => !label.startsWith("copy"));
  assert.equal(sum(kernels, ({ count }) => count), 2 * program.dispatches);
  const flops = 2 * (2 * 64 * 128 * 192 + 2 * 64 * 192 * 64);
  assert.ok(Math.abs(sum(rows, (row) => row.flops) / flops - 1) < 1e-9);
  assert.ok(Math.abs(sum(kernels, ({ ideal }) => ideal) / (1000 * flops / roofline.flops) - 1) < 1e-9);
  assert.ok(kernels.every(({ milliseconds, arithmetic }) => milliseconds > 0 && arithmetic));
  assert.deepEqual(rows, rows.toSorted((x, y) => y.milliseconds - x.milliseconds));
});

Deno.test("a profile's table tells shares, rates and what the whole step takes beside", () => {
  const row = { count: 2, flops: 4e9, bytes: 1e9, ideal: 30, arithmetic: true };
  const rows = [
    { ...row, label: "a product", milliseconds: 60 },
    { ...row, label: "a sum", milliseconds: 20, flops: 0, arithmetic: false },
  ];
  const lines = formatProfile(rows, { flops: 1e11, bytes: 2e10 }, 100).split("\n");
  assert.match(lines[1], /^60\.00 +75 % +2 +66\.7 +16\.7 +50 % +a product$/);
  assert.match(lines[2], /^20\.00 +25 % +2 +50\.0 +150 % +a sum$/);
  assert.match(lines[3], /100\.0 GFLOP\/s in its best product, 20\.0 GB\/s in copies/);
  assert.equal(lines[4], "kernels' own time 80.0 ms, 60.0 of it bound by arithmetic");
  assert.equal(lines[5], "whole step 100.0 ms: 1.25 times all kernels, 1.67 times those bound by arithmetic");
});

Deno.test("a profiled run prints one table and keeps its bits", async () => {
  const root = await Deno.makeTempDir();
  const data = join(root, "data");
  await makeData(data, { context: 32, repeat: 8 });
  const flags = (run: string) => [...FLAGS, "--data", data, "--out", join(root, run)];
  await runTraining(flags("plain"), { openLearner });
  const said = await runTraining([...flags("profiled"), "--profile"], { openLearner });
  assert.equal(said.match(/of roofline +kernel/g)!.length, 1);
  assert.match(said, /ms .*adamw/s);
  assert.match(said, /whole step [\d.]+ ms: [\d.]+ times all kernels/);
  assert.equal(await bits(join(root, "profiled"), 4), await bits(join(root, "plain"), 4));
  await Deno.remove(root, { recursive: true });
});
