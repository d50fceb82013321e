/** Whole runs with a learner of a few lines: what they leave, and that stopping anywhere changes no bit. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { readFolder } from "../../model/checkpoint.ts";
import { UserError } from "../../model/errors.ts";
import { loadTokenizer } from "../../model/tokenizer.ts";
import type { MetricRecord } from "../../model/run_metrics.ts";
import { readMetrics } from "../../train/metrics.ts";
import { fakeLearner } from "./fake_learner.ts";
import { bits, checkpoints, makeData, runTraining, SMALL } from "./runs.ts";

/** A folder with data and, in `whole`, a run without interruption. */
async function workplace(): Promise<{ root: string; flags: (run: string) => string[] } & AsyncDisposable> {
  const root = await Deno.makeTempDir();
  await makeData(join(root, "data"));
  const flags = (run: string) => [...SMALL, "--data", join(root, "data"), "--out", join(root, run)];
  return { root, flags, [Symbol.asyncDispose]: () => Deno.remove(root, { recursive: true }) };
}

/** Records without what the clock says. */
async function timeless(run: string): Promise<unknown[]> {
  const drop = (record: MetricRecord) =>
    record.kind === "update" ? { ...record, tokensPerSecond: 0, hostMemory: 0 } : record;
  return (await readMetrics(join(run, "metrics.jsonl"))).map(drop);
}

async function refuses(promise: Promise<unknown>, message: RegExp, exitCode = 1): Promise<void> {
  await assert.rejects(promise, (error) => {
    assert.ok(error instanceof UserError, String(error));
    assert.match(error.message, message);
    assert.equal(error.exitCode, exitCode);
    assert.doesNotMatch(error.message, /\n/);
    return true;
  });
}

Deno.test("a run learns and leaves a checkpoint that loads, metrics, samples and plots", async () => {
  await using place = await workplace();
  const run = join(place.root, "run");
  const said = await runTraining(place.flags("run"));
  const records = await readMetrics(join(run, "metrics.jsonl"));
  const updates = records.filter((record) => record.kind === "update");
  const evaluations = records.filter((record) => record.kind === "evaluation");
  assert.deepEqual(updates.map(({ step }) => step), Array.from({ length: 24 }, (_, i) => i + 1));
  assert.deepEqual(evaluations.map(({ step }) => step), [6, 12, 18, 24]);
  assert.ok(updates[23].loss < updates[0].loss - 0.5);
  assert.ok(updates.every(({ tokensPerSecond }) => tokensPerSecond > 0));
  assert.equal(records[0].kind, "run");
  assert.match(said, /held-out loss of guessing by frequency \(unigram entropy\): \d/);
  assert.match(said, /step 24: held-out loss .* \(unigram/);
  assert.match(said, new RegExp(`talk to it: deno task serve --model ${run}`));
  assert.match(await Deno.readTextFile(join(run, "samples.txt")), /^=== step 12 ===\nThe.*=== step 24 ===\nThe/s);
  for (const name of ["loss", "gradient_norm", "learning_rate", "throughput"]) {
    assert.match(await Deno.readTextFile(join(run, "plots", `${name}.svg`)), /^<svg /);
  }
  assert.equal(await Deno.readTextFile(join(run, "checkpoints", "latest")), "step-000024\n");
  using files = await readFolder(join(run, "checkpoints", "step-000024"));
  assert.equal(files.config.n_positions, 16);
  const tokenizer = await loadTokenizer(join(run, "checkpoints", "step-000024"));
  assert.equal(tokenizer.hash, (await loadTokenizer("bytes")).hash);
  assert.deepEqual(await checkpoints(run), ["latest", "step-000018", "step-000024"]);
});

Deno.test("stopped anywhere and resumed, a run has the same bits and metrics as one that wasn't", async () => {
  await using place = await workplace();
  await runTraining(place.flags("whole"));
  for (const step of [1, 6, 13]) {
    const run = join(place.root, `stopped-${step}`);
    const said = await runTraining(place.flags(`stopped-${step}`), { stopAt: new RegExp(`^step ${step}/`) });
    const stopped = Number(/stopped after step (\d+)/.exec(said)?.[1]);
    assert.ok(stopped === step || stopped === step + 1, said);
    assert.match(said, new RegExp(`go on with: deno task train --out ${run} --resume`));
    const again = await runTraining(["--out", run, "--resume"]);
    assert.match(again, /done: 24 updates/);
    assert.equal(await bits(run, 24), await bits(join(place.root, "whole"), 24));
    assert.deepEqual(await timeless(run), await timeless(join(place.root, "whole")));
    assert.equal(
      await Deno.readTextFile(join(run, "samples.txt")),
      await Deno.readTextFile(join(place.root, "whole", "samples.txt")),
    );
  }
  assert.match(await runTraining(["--out", join(place.root, "whole"), "--resume"]), /done: 24 updates/);
});

function spawn(args: readonly string[]): Deno.ChildProcess {
  const script = fileURLToPath(new URL("./fake_main.ts", import.meta.url));
  const permissions = ["--no-prompt", "--allow-read", "--allow-write", "--allow-env", "--allow-sys"];
  return new Deno.Command(Deno.execPath(), {
    args: ["run", ...permissions, script, ...args],
    stdout: "piped",
    stderr: "inherit",
  })
    .spawn();
}

/** Calls back with everything a child has said up to now; resolves to all of it when the child ends. */
async function listen(child: Deno.ChildProcess, onText: (said: string) => void): Promise<string> {
  let said = "";
  for await (const text of child.stdout.pipeThrough(new TextDecoderStream())) onText(said += text);
  return said;
}

Deno.test("killed at random moments and resumed, a run has the same bits as one that wasn't", async () => {
  await using place = await workplace();
  await runTraining(place.flags("whole"));
  const run = join(place.root, "killed");
  let kills = 0;
  for (let attempt = 0; attempt < 40; attempt++) {
    const there = await Deno.stat(run).then(() => true, () => false);
    const child = spawn([...place.flags("killed"), ...(there ? ["--resume"] : [])]);
    // From the start of the process to past the first checkpoint that it writes.
    const wait = kills === 0 ? 300 : Math.random() * 500;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const kill = () => {
      kills++;
      child.kill("SIGKILL");
    };
    const said = await listen(child, (said) => {
      if (kills < 5 && /updates \d+ to/.test(said)) timer ??= setTimeout(kill, wait);
    });
    clearTimeout(timer);
    const { code, signal } = await child.status;
    if (signal === "SIGKILL") continue;
    assert.equal(code, 0, said);
    break;
  }
  assert.ok(kills > 0);
  assert.equal(await bits(run, 24), await bits(join(place.root, "whole"), 24));
  assert.deepEqual(await timeless(run), await timeless(join(place.root, "whole")));
  assert.deepEqual(await checkpoints(run), ["latest", "step-000018", "step-000024"]);
});

Deno.test("the first signal finishes the step and writes a checkpoint, the second ends at once", async () => {
  await using place = await workplace();
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    const child = spawn(place.flags(signal));
    let sent = false;
    const said = await listen(child, (said) => {
      if (!sent && /step 3\/24/.test(said)) child.kill(signal);
      sent ||= /step 3\/24/.test(said);
    });
    assert.equal((await child.status).code, 0, said);
    assert.match(said, /stopping after this step; once more stops now/);
    const step = /stopped after step (\d+) of 24; go on with: deno task train --out .* --resume/.exec(said)?.[1];
    assert.match(
      await Deno.readTextFile(join(place.root, signal, "checkpoints", "latest")),
      new RegExp(`step-0*${step}\n`),
    );
  }
  const twice = spawn([...place.flags("twice"), "--batch-tokens", "9600"]);
  let times = 0;
  const said = await listen(twice, (said) => {
    if (times === 0 && /updates 1 to/.test(said)) {
      times++;
      setTimeout(() => twice.kill("SIGINT"), 50);
    }
    if (times === 1 && /once more/.test(said)) {
      times++;
      setTimeout(() => twice.kill("SIGINT"), 600); // what comes sooner is taken for an echo
    }
  });
  assert.equal((await twice.status).code, 130, said);
  assert.doesNotMatch(said, /stopped after/);
});

Deno.test("a loss that isn't finite stops the run and names step, batches and last good checkpoint", async () => {
  await using place = await workplace();
  const run = runTraining(place.flags("run"), { openLearner: fakeLearner({ nan: 8 }) });
  await refuses(
    run,
    /^The loss of step 8 is NaN \(batches 14 to 15 of the training data\).*last good checkpoint: .*step-000006; go on from it with: deno task train --out .*run --resume$/,
  );
  assert.deepEqual(await checkpoints(join(place.root, "run")), ["latest", "step-000006"]);
  const early = runTraining(place.flags("early"), { openLearner: fakeLearner({ nan: 1 }) });
  await refuses(early, /^The loss of step 1 is NaN .*no checkpoint was written yet$/);
});

Deno.test("a disk that fills up leaves the checkpoints before it, and the run can go on", async () => {
  await using place = await workplace();
  await runTraining(place.flags("whole"));
  const run = join(place.root, "run");
  const full = Object.assign(new Error("No space left on device (os error 28)"), { code: "ENOSPC" });
  let reads = 0;
  const failing = runTraining(place.flags("run"), {
    async openLearner(options) {
      const learner = await fakeLearner()(options);
      const tensors: typeof learner.tensors = (kind) =>
        learner.tensors(kind).map((tensor) => ({
          ...tensor,
          read: () => ++reads > 60 ? Promise.reject(full) : tensor.read(),
        }));
      return { ...learner, tensors };
    },
  });
  await refuses(
    failing,
    /^Cannot write .*step-000012.*: No space left on device; last good checkpoint: .*step-000006; go on/,
  );
  assert.deepEqual(await checkpoints(run), ["latest", "step-000006"]);
  await runTraining(["--out", run, "--resume"]);
  assert.equal(await bits(run, 24), await bits(join(place.root, "whole"), 24));
});

Deno.test("a damaged newest checkpoint is set aside, and the run goes on from the one before", async () => {
  await using place = await workplace();
  await runTraining(place.flags("whole"));
  const run = join(place.root, "run");
  await runTraining([...place.flags("run"), "--keep-checkpoints", "1"], { stopAt: /^step 13\// });
  const [newest] = (await checkpoints(run)).slice(-1);
  await Deno.truncate(join(run, "checkpoints", newest, "optimizer.safetensors"), 1000);
  const said = await runTraining(["--out", run, "--resume", "--keep-checkpoints", "1"]);
  assert.match(said, new RegExp(`warning: passing over .*${newest}.*optimizer.safetensors`));
  assert.match(said, /updates 13 to 24/);
  assert.deepEqual(await checkpoints(run), ["latest", "step-000024", `${newest}.damaged`].sort());
  assert.equal(await bits(run, 24), await bits(join(place.root, "whole"), 24));
});

Deno.test("a run's folder is never taken twice", async () => {
  await using place = await workplace();
  await runTraining([...place.flags("run"), "--steps", "2"]);
  await refuses(
    runTraining(place.flags("run")),
    /^Cannot start a run in .*run: it holds .* already; go on with it by --resume/,
  );
  await refuses(runTraining(["--out", join(place.root, "none"), "--resume"]), /^Nothing to resume: there is no run/);
  const child = spawn([...place.flags("busy"), "--steps", "1000"]);
  let second: Promise<void> | undefined;
  await listen(child, (said) => {
    if (!/step 2\//.test(said)) return;
    second ??= refuses(
      runTraining(["--out", join(place.root, "busy"), "--resume"]),
      /another process is training there/,
    )
      .finally(() => child.kill("SIGKILL"));
  });
  await second;
  await child.status;
});

Deno.test("a resumed run with other settings, data or tokenizer is refused, with the differences named", async () => {
  await using place = await workplace();
  const run = join(place.root, "run");
  await runTraining(place.flags("run"), { stopAt: /^step 4\// });
  const resume = (...args: string[]) => runTraining(["--out", run, "--resume", ...args]);
  await refuses(resume("--n-layer", "2", "--seed", "7"), /other settings: nLayer was 1, now 2; seed was 1, now 7/, 2);
  const other = join(place.root, "other");
  await makeData(other, { repeat: 6 });
  await refuses(resume("--data", other), /^Cannot resume .* with another data: .*other isn't what it was trained on/);
  assert.match(await resume("--steps", "8", "--log-every", "2"), /done: 8 updates/);
});

Deno.test("a run starts from another model's weights with a fresh optimizer", async () => {
  await using place = await workplace();
  await runTraining(place.flags("first"));
  const from = join(place.root, "first", "checkpoints", "step-000024");
  const said = await runTraining([...place.flags("second"), "--init-from", from]);
  const losses = async (run: string) =>
    (await readMetrics(join(place.root, run, "metrics.jsonl")))
      .filter((record) => record.kind === "update").map(({ loss }) => loss);
  const [first, second] = [await losses("first"), await losses("second")];
  assert.ok(second[0] < first[0] - 0.5 && second[23] < first[23] - 0.1, said);
  const misfit = runTraining([...place.flags("third"), "--n-embd", "12", "--init-from", from]);
  await refuses(misfit, /^Cannot start from .*: its n_embd is 8, --n-embd is 12$/, 2);
});

Deno.test("data that doesn't fit is refused before anything is made of it", async () => {
  await using place = await workplace();
  await refuses(
    runTraining([...place.flags("a"), "--context", "8"]),
    /prepared with context 16, wanted 8; give --context 16, or prepare it again/,
  );
  await refuses(runTraining([...place.flags("b"), "--tokenizer", "gpt2"]), /^Drop --tokenizer/, 2);
  await refuses(
    runTraining(["--data", join(place.root, "none"), "--out", join(place.root, "c")]),
    /^Cannot find data in/,
  );
});
