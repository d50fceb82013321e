/** Whole runs of the train command over several ranks on real devices: threads, processes, shared moments, unlike adapters. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { readMetrics } from "../../train/metrics.ts";
import { testWithSwiftShader } from "../swiftshader.ts";
import { bits, makeData } from "./runs.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const { tasks } = JSON.parse(Deno.readTextFileSync(join(ROOT, "deno.json")));
const [, ...TASK]: string[] = tasks.train.command.split(" ");

const STEPS = 10;
const FLAGS = [
  ...["--context", "32", "--n-layer", "2", "--n-head", "2", "--n-embd", "32", "--dropout", "0.1", "--tune", "off"],
  ...["--micro-batch", "2", "--batch-tokens", "256", "--warmup", "2", "--learning-rate", "0.01"],
  ...["--eval-every", "5", "--eval-batches", "2", "--sample-every", "0", "--sample-tokens", "1"],
  ...["--steps", `${STEPS}`, "--checkpoint-every", "5"],
];

interface Trained {
  readonly losses: readonly number[];
  readonly heldOut: readonly number[];
  /** Of weights and moments. */
  readonly bits: string;
  readonly said: string;
}

type Train = (name: string, flags: readonly string[], env?: Readonly<Record<string, string>>) => Promise<Trained>;

/** Runs the command, with the permissions that the task gives. */
async function withData(body: (train: Train) => Promise<void>): Promise<void> {
  const root = await Deno.makeTempDir();
  try {
    await makeData(join(root, "data"), { context: 32, repeat: 8 });
    await body(async (name, flags, env = {}) => {
      const out = join(root, name);
      const fresh = flags.includes("--resume") ? [] : [...FLAGS, "--data", join(root, "data")];
      const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
        args: [...TASK, ...fresh, "--out", out, ...flags],
        cwd: ROOT,
        env: { NO_COLOR: "1", ...env },
      }).output();
      const [said, error] = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes));
      assert.equal(code, 0, said + error);
      const records = await readMetrics(join(out, "metrics.jsonl"));
      return {
        losses: records.flatMap((record) => record.kind === "update" ? [record.loss] : []),
        heldOut: records.flatMap((record) => record.kind === "evaluation" ? [record.loss] : []),
        bits: await bits(out, STEPS),
        said,
      };
    });
  } finally {
    await Deno.remove(root, { recursive: true });
  }
}

/** f32 gradients summed in another order, over ten updates. */
function assertNear(got: readonly number[], want: readonly number[]): void {
  assert.equal(got.length, want.length);
  got.forEach((loss, i) => assert.ok(Math.abs(loss - want[i]) <= 1e-4 * want[i], `${i}: ${loss}, ${want[i]}`));
}

Deno.test("threads, processes and shared moments give the same bits; one rank alone the same numbers", () =>
  withData(async (train) => {
    const one = await train("one", []);
    const threads = await train("threads", ["--ranks", "2"]);
    assert.match(threads.said, /\n2 ranks: rank 0 .*, rank 1 /);
    assertNear(threads.losses, one.losses);
    assertNear(threads.heldOut, one.heldOut);
    const { said: _, ...same } = threads;
    for (const [name, ...flags] of [["processes", "--isolation", "process"], ["shards", "--shard-optimizer"]]) {
      const { said: _, ...other } = await train(name, ["--ranks", "2", ...flags]);
      assert.deepEqual(other, same, name);
    }
  }));

Deno.test("moments that were shared out stand in the checkpoint whole, for any number of ranks", () =>
  withData(async (train) => {
    const constant = ["--schedule", "constant"];
    const whole = await train("whole", ["--ranks", "2", ...constant]);
    const goOn = async (name: string, ...flags: string[]) => {
      await assert.rejects(train(name, ["--ranks", "2", ...constant, "--steps", "5", ...flags]), /step-000010/);
      return await train(name, ["--resume", "--steps", `${STEPS}`, "--ranks", "2"]);
    };
    assert.equal((await goOn("shards", "--shard-optimizer")).bits, whole.bits);
    assert.equal((await goOn("whole then shards")).bits, whole.bits);
  }));

testWithSwiftShader(
  "unlike adapters learn together what each learns alone, with one set of weights",
  (env) =>
    withData(async (train) => {
      const both = await train("both", ["--adapters", "all"], env);
      assert.match(both.said, /SwiftShader.*llvmpipe|llvmpipe.*SwiftShader/);
      for (const adapter of ["SwiftShader", "llvmpipe"]) {
        const alone = await train(adapter, ["--adapters", adapter], env);
        assertNear(both.losses, alone.losses);
        assertNear(both.heldOut, alone.heldOut);
      }
    }),
);
