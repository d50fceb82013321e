/** Whole runs of several ranks with learners of a few lines: what one learns, they learn together. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { UserError } from "../../model/errors.ts";
import type { Communicator } from "../../train/communicator.ts";
import { readMetrics } from "../../train/metrics.ts";
import { follow, leading } from "../../train/parallel.ts";
import { shares, updateShape } from "../../train/shares.ts";
import { fakeLearner, type Faults } from "./fake_learner.ts";
import { together } from "./local_ranks.ts";
import { bits, makeData, runTraining, SMALL } from "./runs.ts";

interface Ranks {
  readonly size: number;
  readonly faults?: (rank: number) => Faults;
  readonly stopAt?: RegExp;
}

/** @returns what rank 0 said. */
async function run(args: readonly string[], { size, faults = () => ({}), stopAt }: Ranks): Promise<string> {
  const said = await together(size, async (communicator: Communicator) => {
    const open = fakeLearner({ ...faults(communicator.rank), communicator });
    if (communicator.rank > 0) return await follow(communicator, open, { line() {}, status() {} });
    return await runTraining(args, { openLearner: leading(communicator, open), ranks: size, stopAt });
  });
  return said[0]!;
}

async function losses(folder: string): Promise<number[]> {
  const records = await readMetrics(join(folder, "metrics.jsonl"));
  return records.flatMap((record) => record.kind === "update" ? [record.loss] : []);
}

async function withData(body: (root: string, flags: (run: string) => string[]) => Promise<void>): Promise<void> {
  const root = await Deno.makeTempDir();
  try {
    await makeData(join(root, "data"));
    await body(root, (run) => [...SMALL, "--data", join(root, "data"), "--out", join(root, run)]);
  } finally {
    await Deno.remove(root, { recursive: true });
  }
}

function assertNear(got: readonly number[], want: readonly number[]): void {
  assert.equal(got.length, want.length);
  // f32 sums in another order, over 24 updates.
  got.forEach((loss, i) =>
    assert.ok(Math.abs(loss - want[i]) <= 1e-4 * want[i], `update ${i + 1}: ${loss}, ${want[i]}`)
  );
}

Deno.test("ranks learn together what one learns, from the same rows, twice with the same bits", () =>
  withData(async (root, flags) => {
    await runTraining(flags("one"));
    const one = await losses(join(root, "one"));
    for (const size of [2, 3, 4]) {
      const said = await run(flags(`${size}`), { size });
      assert.match(said, new RegExp(`${size} ranks: rank 0 fake, rank 1 fake`));
      assertNear(await losses(join(root, `${size}`)), one);
    }
    await run(flags("again"), { size: 2 });
    assert.equal(await bits(join(root, "again"), 24), await bits(join(root, "2"), 24));
  }));

Deno.test("a run goes on with another number of ranks, from the same rows", () =>
  withData(async (root, flags) => {
    await runTraining(flags("one"));
    for (const [before, after] of [[1, 3], [4, 1], [2, 4]]) {
      const out = `${before}-${after}`;
      await run(flags(out), { size: before, stopAt: /^step 9\// });
      await run(["--out", join(root, out), "--resume"], { size: after });
      assertNear(await losses(join(root, out)), await losses(join(root, "one")));
    }
  }));

Deno.test("ranks share an update by their speeds, which a resumed run keeps", () =>
  withData(async (root, flags) => {
    const steps: number[] = [0, 0];
    const faults = (rank: number): Faults => ({ speed: rank === 0 ? 3 : 1, onMicrostep: () => steps[rank]++ });
    const said = await run([...flags("run"), "--balance"], { size: 2, faults, stopAt: /^step 9\// });
    assert.match(said, /rank 0 fake takes 75 %, rank 1 fake takes 25 %/);
    assert.equal(steps[1], 0); // rank 0 computes both microbatches sooner than rank 1 one
    const more = [...flags("more"), "--batch-tokens", "256", "--balance"];
    steps.fill(0);
    await run(more, { size: 2, faults });
    assert.deepEqual(steps.map((count) => count / steps[1]), [3, 1]);
    assert.deepEqual(JSON.parse(await Deno.readTextFile(join(root, "more", "speeds.json"))), [3, 1]);
    await run(["--out", join(root, "run"), "--resume"], { size: 2, faults: () => ({ speed: 1 }) });
    await run([...flags("whole"), "--balance"], { size: 2, faults });
    assert.equal(await bits(join(root, "run"), 24), await bits(join(root, "whole"), 24));
  }));

Deno.test("ranks whose weights differ are found out before a checkpoint is written", () =>
  withData(async (root, flags) => {
    const broken = together(2, async (communicator) => {
      const open = fakeLearner({ communicator });
      if (communicator.rank === 0) {
        return await runTraining(flags("run"), { openLearner: leading(communicator, open), ranks: 2 });
      }
      return await follow(communicator, async (options) => {
        const learner = await open(options);
        const update: typeof learner.update = ({ learningRate, update }) =>
          learner.update({ update, learningRate: learningRate * (update === 5 ? 1.001 : 1) });
        return { ...learner, update };
      }, { line() {}, status() {} });
    });
    await assert.rejects(broken, /Weights of rank 1 aren't rank 0's/);
    await assert.rejects(Deno.stat(join(root, "run", "checkpoints", "latest")), Deno.errors.NotFound);
  }));

Deno.test("an update's rows are shared out whole", () => {
  const config = { microBatch: 8, batchTokens: 0, context: 16 };
  assert.deepEqual(updateShape(config, 1), { rows: 8, microbatches: 1 });
  assert.deepEqual(updateShape(config, 2), { rows: 4, microbatches: 2 });
  assert.deepEqual(updateShape(config, 3), { rows: 2, microbatches: 4 });
  assert.deepEqual(updateShape({ ...config, batchTokens: 8 * 16 * 5 }, 3), { rows: 8, microbatches: 5 });
  assert.throws(() => updateShape(config, 9), (error) => {
    assert.ok(error instanceof UserError);
    assert.match(error.message, /^Cannot share 8 rows an update among 9 ranks: raise --batch-tokens to 144/);
    return true;
  });
  assert.deepEqual(shares(4, [1, 1]), [[0, 2], [2, 4]]);
  assert.deepEqual(shares(5, [1, 1]), [[0, 3], [3, 5]]);
  assert.deepEqual(shares(8, [3, 1]), [[0, 6], [6, 8]]);
  assert.deepEqual(shares(2, [1, 0.001]), [[0, 2], [2, 2]]);
  for (const speeds of [[1, 2, 3], [5, 1, 1, 1], [0.3, 0.31]]) {
    for (const count of [1, 7, 64]) {
      const all = shares(count, speeds);
      assert.equal(all.at(-1)![1], count);
      // Nobody could finish sooner: moving one microbatch elsewhere takes at least as long.
      const longest = Math.max(...all.map(([from, to], rank) => (to - from) / speeds[rank]));
      speeds.forEach((speed, rank) => {
        const [from, to] = all[rank];
        assert.ok((to - from + 1) / speed >= longest - 1e-9);
      });
    }
  }
});
