/**
 * The training run, from top to bottom: open, resume, learn, measure, keep. It knows no GPU and no command line; what learns
 * comes in as a Learner.
 */
import { join } from "node:path";
import { shellWord } from "../model/arguments.ts";
import { UserError } from "../model/errors.ts";
import { duration } from "../model/progress.ts";
import type { UpdateRecord } from "../model/run_metrics.ts";
import { type Config, describeConfig, type Settings } from "./config.ts";
import type { Console } from "./console.ts";
import { openData, type TrainingData } from "./data.ts";
import { openHeldOut } from "./held_out.ts";
import { readKernels, readSpeeds, writeKernels, writeSpeeds } from "./kernels.ts";
import type { OpenLearner } from "./learner.ts";
import { openLoader } from "./loader.ts";
import { openMetrics } from "./metrics.ts";
import { writePlots } from "./plot.ts";
import { profileStep } from "./profile.ts";
import { openRun, resumeCommand } from "./run_folder.ts";
import { cutSamples, sample } from "./sample.ts";
import { learningRateAt } from "./schedule.ts";
import { updateShape } from "./shares.ts";
import { loadWeights, startingPoint } from "./starting_point.ts";
import { type Checkpoint, goBackTo, pruneCheckpoints, restore, saveCheckpoint, type TrainerState } from "./state.ts";

export interface Services {
  readonly openLearner: OpenLearner;
  readonly console: Console;
  /** Asks the run to end after the update at hand. `listen` is called when it is able to. */
  readonly stop: { readonly requested: boolean; listen(): void };
  /** Devices that share each update. Default: 1. */
  readonly ranks?: number;
  /** Hears where the run stands: its folder, the updates done. */
  readonly onProgress?: (run: string, step: number) => void;
}

/** An update whose loss hasn't been read yet. */
type Pending = Pick<UpdateRecord, "step" | "learningRate" | "tokens">;

/**
 * Trains until the last update or a stop.
 *
 * @returns the run's folder.
 * @throws UserError where settings, data and checkpoint don't fit, the disk refuses, or the loss isn't finite.
 */
export async function train(settings: Settings, services: Services): Promise<string> {
  const { openLearner, console, stop, ranks = 1, onProgress } = services;
  using run = await openRun(settings, (line) => console.line(`warning: ${line}`));
  const { config, checkpoint } = run;
  onProgress?.(run.folder, checkpoint?.state.step ?? 0);
  const { context, documents, seed } = config;
  const { rows: rowsPerBatch, microbatches } = updateShape(config, ranks);
  const data = await openData(config, settings.written, console);
  checkSameData(run.folder, data, checkpoint);

  // The data and the shape of an update.
  using rows = await openLoader({
    data: data.folder,
    split: "train",
    context,
    rowsPerBatch,
    seed,
    documents,
  });
  using heldOut = await openHeldOut(data.folder, config, rowsPerBatch);
  const rowsPerUpdate = microbatches * rowsPerBatch;
  const steps = config.steps || Math.ceil(config.epochs * rows.rows / rowsPerUpdate);

  // The model, where it starts.
  console.line(describeConfig(config));
  const start = await startingPoint(config, data.manifest, checkpoint?.folder);
  const initialize = start.weights === undefined;
  const recorded = config.resume
    ? { kernels: await readKernels(run.folder), speeds: await readSpeeds(run.folder) }
    : undefined;
  await using learner = await openLearner({
    config: { ...config, microBatch: rowsPerBatch },
    model: start.model,
    initialize,
    ...recorded,
    console,
  });
  await writeKernels(run.folder, learner.kernels);
  if (config.balance && learner.speeds !== undefined) await writeSpeeds(run.folder, learner.speeds);
  if (checkpoint !== undefined) {
    await restore(learner, checkpoint);
    await goBackTo(run.folder, checkpoint);
    await pruneCheckpoints(run.folder, config.keepCheckpoints);
  } else if (start.weights !== undefined) await loadWeights(learner, start.weights);
  let state = checkpoint?.state ?? beginning(config, data);
  let lastGood = checkpoint?.folder;
  console.line(learner.describe());
  console.line(
    `${run.folder}: updates ${state.step + 1} to ${steps} of ${rowsPerUpdate} rows × ${context} tokens, ` +
      `${(steps * rowsPerUpdate / rows.rows).toFixed(2)} epochs of ${count(rows.splitTokens)} tokens`,
  );
  console.line(`held-out loss of guessing by frequency (unigram entropy): ${data.unigramEntropy.toFixed(4)}`);

  // What the run leaves behind.
  await cutSamples(run.folder, state.step);
  using metrics = await openMetrics(join(run.folder, "metrics.jsonl"), state.step);
  if (state.step === 0) {
    const { parameters, device } = learner;
    metrics.append({ kind: "run", step: 0, unigramEntropy: data.unigramEntropy, parameters, device });
  }
  const keep = async (): Promise<void> => {
    await learner.agree();
    const lossScaling = await learner.lossScaling();
    const saved = { ...state, lossScaling, config: { ...config, resume: false } };
    lastGood = await saveCheckpoint(run.folder, learner, data.tokenizer, saved);
    await pruneCheckpoints(run.folder, config.keepCheckpoints);
  };

  // Rulers: the loss is read after the next update's microbatches were begun, so that the GPU has work meanwhile.
  let pending: Pending | undefined;
  const firstStep = state.step + 1;
  const profile = config.profile ? profileStep(learner, console, firstStep + 1) : undefined;
  const began = { time: performance.now(), step: state.step };
  const lap = { time: began.time, tokens: 0, tokensPerSecond: 0 };
  const newLap = () => Object.assign(lap, { time: performance.now(), tokens: 0 });
  const settle = async (): Promise<void> => {
    if (pending === undefined) return;
    const { loss, gradNorm, lossScaling } = await learner.report();
    if (!Number.isFinite(loss)) throw notFinite(loss, pending.step, microbatches);
    const now = performance.now();
    if (lap.tokens > 0) {
      lap.tokensPerSecond = Math.round(lap.tokens / ((now - lap.time) / 1000));
      newLap();
    }
    const { tokensPerSecond } = lap;
    const scaling = lossScaling && { lossScale: lossScaling.scale, skipped: lossScaling.skipped };
    const memory = { deviceMemory: learner.deviceBytes(), hostMemory: Deno.memoryUsage().rss };
    metrics.append({ kind: "update", ...pending, loss, gradNorm, tokensPerSecond, ...scaling, steps, ...memory });
    const left = (steps - pending.step) * (now - began.time) / 1000 / (pending.step - began.step);
    // The first update compiles shaders: what is left is told by those after it.
    const first = pending.step === firstStep;
    if (first) Object.assign(began, { time: now, step: pending.step });
    console.status(statusLine({ ...pending, loss, gradNorm, tokensPerSecond }, steps, first ? undefined : left));
    if (!Number.isFinite(gradNorm)) {
      const halved = lossScaling ? `; the loss scale is now ${lossScaling.scale}` : "";
      console.line(`step ${pending.step}: the gradient isn't finite; the update was left out${halved}`);
    }
    pending = undefined;
  };

  stop.listen();
  try {
    for (let step = state.step + 1; step <= steps && !stop.requested; step++) {
      const first = (step - 1) * microbatches;
      const batches = await Promise.all(Array.from({ length: microbatches }, (_, i) => rows.batch(first + i)));
      const targets = batches.reduce((sum, { validTargets }) => sum + validTargets, 0);
      await profile?.before(step);
      await learner.accumulate({ batches, scale: 1 / Math.max(1, targets), seed, update: step });
      lap.tokens += targets;
      await settle();
      const learningRate = learningRateAt(step, { ...config, steps });
      await learner.update({ learningRate, update: step });
      if (await profile?.after(step)) newLap();
      const tokens = state.tokens + targets;
      state = { ...state, step, tokens, heldOutLoss: null };

      onProgress?.(run.folder, step);
      const due = (every: number) => step === steps || (every > 0 && step % every === 0);
      const checkpointDue = due(config.checkpointEvery);
      const evaluationDue = due(config.evalEvery) || checkpointDue;
      const sampleDue = due(config.sampleEvery);
      if (due(config.logEvery) || step === firstStep) pending = { step, learningRate, tokens };
      if (!evaluationDue && !sampleDue && !stop.requested) continue;

      await settle();
      if (evaluationDue) {
        const loss = await heldOut.measure(learner);
        state = { ...state, heldOutLoss: loss, bestLoss: Math.min(loss, state.bestLoss ?? Infinity) };
        metrics.append({ kind: "evaluation", step, loss });
        console.line(`step ${step}: held-out loss ${loss.toFixed(4)} (unigram ${data.unigramEntropy.toFixed(4)})`);
      }
      if (sampleDue) {
        await sample(learner.engine(), run.folder, { config, tokenizer: data.tokenizer, step, console, stop });
      }
      if (checkpointDue || stop.requested) await keep();
      newLap();
    }
  } catch (error) {
    throw withWayOn(error, run.folder, lastGood);
  }

  const plots = await writePlots(run.folder);
  if (plots.length > 0) console.line(`plots: ${join(run.folder, "plots")}`);
  if (state.step < steps) {
    console.line(`stopped after step ${state.step} of ${steps}; go on with: ${resumeCommand(run.folder)}`);
    return run.folder;
  }
  console.line(`done: ${steps} updates, best held-out loss ${state.bestLoss?.toFixed(4)}; checkpoint ${lastGood}`);
  console.line(`talk to it: deno task serve --model ${shellWord(run.folder)}`);
  return run.folder;
}

function beginning(config: Config, { tokenizer, hash }: TrainingData): TrainerState {
  return {
    version: 1,
    step: 0,
    tokens: 0,
    heldOutLoss: null,
    bestLoss: null,
    lossScaling: null,
    config,
    tokenizerHash: tokenizer.hash,
    dataHash: hash,
  };
}

function checkSameData(run: string, data: TrainingData, checkpoint: Checkpoint | undefined): void {
  if (checkpoint === undefined) return;
  const { tokenizerHash, dataHash } = checkpoint.state;
  const differs = tokenizerHash !== data.tokenizer.hash ? "tokenizer" : dataHash !== data.hash ? "data" : undefined;
  if (differs === undefined) return;
  const found = `${data.folder} isn't what it was trained on`;
  throw new UserError(`Cannot resume ${run} with another ${differs}: ${found}; give its --data, or start a new run`);
}

function notFinite(loss: number, step: number, accumulate: number): UserError {
  const last = step * accumulate - 1;
  const batches = accumulate === 1 ? `batch ${last}` : `batches ${last - accumulate + 1} to ${last}`;
  return new UserError(`The loss of step ${step} is ${loss} (${batches} of the training data): lower --learning-rate`);
}

/** What stopped the run, with what is left of it and how to go on. */
function withWayOn(error: unknown, run: string, lastGood: string | undefined): unknown {
  if (!(error instanceof UserError)) return error;
  const left = lastGood === undefined
    ? "no checkpoint was written yet"
    : `last good checkpoint: ${lastGood}; go on from it with: ${resumeCommand(run)}`;
  return new UserError(`${error.message}; ${left}`, error.exitCode);
}

function statusLine(update: Omit<UpdateRecord, "kind">, steps: number, secondsLeft?: number): string {
  const { step, loss, gradNorm, learningRate, tokensPerSecond } = update;
  return `step ${step}/${steps} loss ${loss.toFixed(4)} lr ${learningRate.toExponential(1)} norm ${
    gradNorm.toFixed(2)
  } ` +
    `${count(tokensPerSecond)} tok/s${secondsLeft === undefined ? "" : ` ${duration(secondsLeft)} left`}`;
}

function count(value: number): string {
  return value.toLocaleString("en-US");
}
