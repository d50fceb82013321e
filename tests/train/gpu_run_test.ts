/** A run on the GPU: it learns, and stopped and resumed it has the same bits. Evaluation of what it leaves agrees with it. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { evaluateCommand } from "../../train/evaluate.ts";
import { openLearner } from "../../train/gpu_learner.ts";
import { openScorer } from "../../train/gpu_scorer.ts";
import { readMetrics } from "../../train/metrics.ts";
import { bits, makeData, runTraining } from "./runs.ts";

const FLAGS = [
  ...["--context", "32", "--n-layer", "2", "--n-head", "2", "--n-embd", "32", "--dropout", "0.1"],
  ...["--micro-batch", "3", "--batch-tokens", "192", "--steps", "10", "--warmup", "2", "--learning-rate", "0.01"],
  ...["--eval-every", "5", "--eval-batches", "0", "--sample-every", "0", "--sample-tokens", "4"],
  ...["--checkpoint-every", "0", "--sample-prompt", "The", "--tune", "off"],
];

Deno.test("on the GPU a run learns, resumes with the same bits, and is evaluated", async () => {
  const root = await Deno.makeTempDir();
  const data = join(root, "data");
  await makeData(data, { context: 32, repeat: 8 });
  const flags = (run: string) => [...FLAGS, "--data", data, "--out", join(root, run)];
  await runTraining(flags("whole"), { openLearner });
  const records = await readMetrics(join(root, "whole", "metrics.jsonl"));
  const losses = records.filter((record) => record.kind === "update").map(({ loss }) => loss);
  assert.ok(losses[9] < losses[0] - 1, losses.join());

  await runTraining(flags("stopped"), { openLearner, stopAt: /^step 4\// });
  await runTraining(["--out", join(root, "stopped"), "--resume"], { openLearner });
  assert.equal(await bits(join(root, "stopped"), 10), await bits(join(root, "whole"), 10));

  const questions = join(root, "questions.jsonl");
  const question = { ctx: "We the people ask for peace", endings: ["and for bread.", "zqxj kvw qqq!"], label: 0 };
  await Deno.writeTextFile(questions, JSON.stringify(question) + "\n");
  const args = ["--model", join(root, "whole"), "--data", data, "--hellaswag", questions];
  const result = JSON.parse(await evaluateCommand([...args, "--json"], openScorer));
  const last = records.filter((record) => record.kind === "evaluation").at(-1)!;
  assert.ok(Math.abs(result.loss - last.loss) < 1e-4, `${result.loss} and ${last.loss}`);
  assert.ok(Math.abs(result.perplexity - Math.exp(result.loss)) < 1e-9);
  // One token a byte, and one end-of-text for each document.
  assert.ok(Math.abs(result.bitsPerByte - result.loss / Math.LN2) < 0.1);
  assert.deepEqual(result.hellaswag, { questions: 1, accuracy: 1, accuracyNormalized: 1 });
  assert.match(await evaluateCommand(args, openScorer), /bits a byte {2}\d/);
  await Deno.remove(root, { recursive: true });
});

Deno.test("on the GPU a run in f16 resumes with the same bits and the same loss scale", async () => {
  const root = await Deno.makeTempDir();
  const data = join(root, "data");
  await makeData(data, { context: 32, repeat: 8 });
  const flags = (run: string) => [...FLAGS, "--precision", "f16", "--data", data, "--out", join(root, run)];
  await runTraining(flags("whole"), { openLearner });
  await runTraining(flags("stopped"), { openLearner, stopAt: /^step 4\// });
  await assert.rejects(
    runTraining(["--out", join(root, "stopped"), "--resume", "--precision", "bf16"], { openLearner }),
    /Cannot resume with other settings: precision was f16, now bf16/,
  );
  await runTraining(["--out", join(root, "stopped"), "--resume"], { openLearner });
  assert.equal(await bits(join(root, "stopped"), 10), await bits(join(root, "whole"), 10));
  const read = async (run: string) => {
    const file = join(root, run, "checkpoints", "step-000010", "trainer_state.json");
    return JSON.parse(await Deno.readTextFile(file)).lossScaling;
  };
  assert.deepEqual(await read("stopped"), await read("whole"));
  assert.deepEqual(await read("whole"), { scale: 65536, streak: 10, applied: 10, skipped: 0 });
  const updates = (await readMetrics(join(root, "stopped", "metrics.jsonl"))).filter(({ kind }) => kind === "update");
  assert.ok(updates.every((record) => "lossScale" in record && record.lossScale === 65536 && record.skipped === 0));
  await Deno.remove(root, { recursive: true });
});
