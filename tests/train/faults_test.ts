/**
 * Real faults of real ranks on the GPU: after each, losses are those of an undisturbed run, bit for bit, and neither a
 * process nor a file is left behind.
 */
import assert from "node:assert/strict";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { readJob } from "../../train/job.ts";
import { readMetrics } from "../../train/metrics.ts";
import { isThere, processes, until } from "./left_behind.ts";
import { checkpoints, makeData } from "./runs.ts";

const [CONFIG, MAIN] = ["../../deno.json", "./faulty_main.ts"].map((path) => {
  return fileURLToPath(new URL(path, import.meta.url));
});

const FLAGS = [
  ...["--context", "32", "--n-layer", "2", "--n-head", "2", "--n-embd", "32", "--dropout", "0.1", "--tune", "off"],
  ...["--micro-batch", "2", "--batch-tokens", "256", "--warmup", "2", "--learning-rate", "0.01"],
  ...["--eval-every", "0", "--eval-batches", "1", "--sample-every", "0", "--sample-tokens", "1"],
  ...["--steps", "30", "--checkpoint-every", "6", "--keep-checkpoints", "3"],
  ...["--adapters", "all", "--ranks", "2", "--isolation", "process"],
];

interface Training {
  readonly folder: string;
  readonly run: string;
}

/** What happens to a training once its ranks live. */
type Fault = (training: Training, supervisor: Deno.ChildProcess) => Promise<void>;

async function inFolder(use: (training: Training) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await makeData(join(folder, "data"), { context: 32, repeat: 8 });
    await use({ folder, run: join(folder, "run") });
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

const ANEW = (training: Training) => [...FLAGS, "--data", join(training.folder, "data")];
const RESUMED = ["--resume"];

/** Trains under a supervisor, and looks for what is left of it when it is gone. @returns its exit code and all that was said. */
async function train(
  training: Training,
  flags: readonly string[],
  { fault, builtIn = "none" }: { readonly fault?: Fault; readonly builtIn?: "none" | "device" | "disk" } = {},
): Promise<{ readonly code: number; readonly said: string }> {
  const temporary = join(training.folder, "tmp");
  await Deno.mkdir(temporary, { recursive: true });
  const supervisor = new Deno.Command(Deno.execPath(), {
    args: ["run", "-q", "--allow-all", "--config", CONFIG, MAIN, builtIn, "--out", training.run, ...flags],
    env: { TMPDIR: temporary, NO_COLOR: "1" },
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const said = Promise.all([supervisor.stdout, supervisor.stderr].map((stream) => new Response(stream).text()));
  const memory = (await readJob(await until(() => jobOf(training)))).sharedMemory;
  await fault?.(training, supervisor);
  const { code } = await supervisor.status;
  await until(async () => (await processes(training.folder)).length === 0);
  await until(() => [...Deno.readDirSync(temporary)].length === 0);
  if (memory !== null) assert.ok(!await isThere(memory), memory);
  for (const folder of [training.run, join(training.run, "checkpoints")]) {
    assert.deepEqual([...Deno.readDirSync(folder)].filter(({ name }) => name.includes(".tmp-")), []);
  }
  return { code, said: (await said).join("") };
}

/** The folder of the job that runs, once its ranks have given a sign of life. */
function jobOf({ folder }: Training): string | undefined {
  for (const { name, isDirectory } of Deno.readDirSync(join(folder, "tmp"))) {
    const job = join(folder, "tmp", name);
    if (isDirectory && [...Deno.readDirSync(job)].some(({ name }) => name === "beat-0.json")) return job;
  }
}

/** Sends signals to the process of a rank, the first when this many updates are done. */
async function signal(training: Training, rank: number, ...signals: Deno.Signal[]): Promise<void> {
  const job = await until(() => jobOf(training));
  const [{ pid }] = (await processes(job)).filter(({ command }) => command.endsWith(` ${job} ${rank}`));
  for (const signal of signals) Deno.kill(pid, signal);
}

async function reached({ run }: Training, step: number): Promise<void> {
  await until(() => {
    try {
      return Deno.readTextFileSync(join(run, "metrics.jsonl")).includes(`"kind":"update","step":${step},`);
    } catch {
      return false;
    }
  });
}

/** Loss of each update. */
async function losses({ run }: Training): Promise<string> {
  const records = await readMetrics(join(run, "metrics.jsonl"));
  return records.flatMap((record) => record.kind === "update" ? [`${record.step}: ${record.loss}`] : []).join(", ");
}

/** Losses of a run that nothing happens to. */
let undisturbed = "";

Deno.test("two processes, undisturbed", async () => {
  await inFolder(async (training) => {
    const { code, said } = await train(training, ANEW(training));
    assert.equal(code, 0, said);
    assert.match(said, /2 ranks: rank 0 .*, rank 1 /);
    undisturbed = await losses(training);
    assert.match(undisturbed, /^1: 5\.\d+, 2: .*, 30: [12]\.\d+$/);
  });
});

/** The newest whole checkpoint, once the one that may be being written is whole too; a rank that stands still writes none after it. */
async function newestCheckpoint(run: string): Promise<string> {
  for (let turn = 0;; turn++) {
    const names = await checkpoints(run);
    if (turn === 40 || !names.some((name) => name.includes(".tmp-"))) {
      return names.filter((name) => /^step-\d+$/.test(name)).at(-1)!;
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

Deno.test("a rank that is killed, with the newest checkpoint cut short: the one before is gone on from", async () => {
  await inFolder(async (training) => {
    const { code, said } = await train(training, ANEW(training), {
      async fault() {
        await reached(training, 14);
        await signal(training, 1, "SIGSTOP");
        const newest = await newestCheckpoint(training.run);
        assert.ok(newest >= "step-000012");
        await Deno.truncate(join(training.run, "checkpoints", newest, "model.safetensors"), 5000);
        await signal(training, 1, "SIGKILL");
      },
    });
    assert.equal(code, 0, said);
    assert.match(
      said,
      /rank 1 \(.+\) was killed by SIGKILL after step \d+; going on from step (6|12) \(restart 1 of 3, in 1 s\)\n/,
    );
    assert.match(said, /warning: passing over .*step-0000(12|18): .*model\.safetensors/);
    assert.equal(await losses(training), undisturbed);
  });
});

Deno.test("a rank that stands still is killed, and the run goes on", async () => {
  await inFolder(async (training) => {
    const { code, said } = await train(training, [...ANEW(training), "--hang-seconds", "5"], {
      async fault() {
        await reached(training, 8);
        await signal(training, 1, "SIGSTOP");
      },
    });
    assert.equal(code, 0, said);
    assert.match(said, /rank 1 \(.+\) gave no sign of life for 5 s after step \d+; going on from step \d+ \(restart 1/);
    assert.equal(await losses(training), undisturbed);
  });
});

Deno.test("a device destroyed in mid-step ends its rank, and the run goes on", async () => {
  await inFolder(async (training) => {
    const { code, said } = await train(training, ANEW(training), { builtIn: "device" });
    assert.equal(code, 0, said);
    assert.match(
      said,
      /rank 1 \(.+\) failed after step \d: GPU error on .*: the device was lost.*; going on from step 6 \(restart 1/,
    );
    assert.equal(await losses(training), undisturbed);
  });
});

Deno.test("stopped by SIGTERM, refused by the disk, resumed: one run", async () => {
  await inFolder(async (training) => {
    const stopped = await train(training, ANEW(training), {
      async fault(_, supervisor) {
        await reached(training, 8);
        supervisor.kill("SIGTERM");
      },
    });
    assert.equal(stopped.code, 0, stopped.said);
    const [, step] = /stopped after step (\d+) of 30; go on with: /.exec(stopped.said)!;
    const last = `step-0000${step.padStart(2, "0")}`;

    const refused = await train(training, RESUMED, { builtIn: "disk" });
    assert.equal(refused.code, 1, refused.said);
    assert.match(
      refused.said,
      new RegExp(`error: Cannot write .*; last good checkpoint: .*${last}; go on from it with: `),
    );
    assert.doesNotMatch(refused.said, /restart/);
    assert.equal((await checkpoints(training.run)).filter((name) => name.startsWith("step-")).at(-1), last);

    const { code, said } = await train(training, RESUMED);
    assert.equal(code, 0, said);
    assert.equal(await losses(training), undisturbed);
  });
});

Deno.test("a supervisor that is killed takes its ranks along, and the run can go on", async () => {
  await inFolder(async (training) => {
    const killed = await train(training, ANEW(training), {
      async fault(_, supervisor) {
        await reached(training, 8);
        supervisor.kill("SIGKILL");
      },
    });
    assert.equal(killed.code, 137);
    const { code, said } = await train(training, RESUMED);
    assert.equal(code, 0, said);
    assert.equal(await losses(training), undisturbed);
  });
});

Deno.test("ranks in one process: killed and gone on with, they compute the same", async () => {
  await inFolder(async (training) => {
    const { code, said } = await train(training, [...ANEW(training), "--isolation", "worker"], {
      async fault() {
        await reached(training, 8);
        const job = await until(() => jobOf(training));
        for (const { pid } of await processes(`rank ${job}`)) Deno.kill(pid, "SIGKILL");
      },
    });
    assert.equal(code, 0, said);
    assert.match(said, /one of 2 ranks was killed by SIGKILL after step \d+; going on from step \d+ \(restart 1/);
    assert.equal(await losses(training), undisturbed);
  });
});
