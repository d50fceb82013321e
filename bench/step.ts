/** How long a training step takes, and what it holds: forward, backward and AdamW on random weights and tokens. */
import { type Device, openDevice } from "../kernels/gpu/device.ts";
import { denseBatch } from "../model/batch.ts";
import { type Gpt2Config, gpt2Defaults } from "../model/gpt2_config.ts";
import { createModel } from "../model/load.ts";
import { driverOf } from "../train/adapters.ts";
import { compileStep } from "../train/step.ts";
import {
  type Bench,
  type BenchOptions,
  compare,
  type Contender,
  contender,
  join,
  type Measured,
  type Peer,
  select,
} from "./harness.ts";
import { tuned } from "./gpu.ts";
import { torch } from "./peer_list.ts";
import { OPTIMIZER, stepFlops, STEPS, type StepWork, tokenAt } from "./work.ts";

const REPEATS = 5;
/** A norm that no gradient here reaches: the norm is taken, as training does, and nothing is clipped. */
export const CLIP = 1e6;

export function configOf({ vocabulary, context, width, heads, layers }: StepWork): Gpt2Config {
  return {
    ...gpt2Defaults,
    vocab_size: vocabulary,
    n_positions: context,
    n_embd: width,
    n_head: heads,
    n_layer: layers,
  };
}

interface StepContender extends Contender {
  /** Where a step's time goes, kernel by kernel; `whole` is what it takes unmeasured, in milliseconds. */
  profile(whole: number): Promise<string>;
}

/** A step as a contender. One run is a microstep, an update and the wait for its loss. */
export async function openStep(device: Device, work: StepWork, options: BenchOptions): Promise<StepContender> {
  const { context, vocabulary, rows } = work;
  const config = configOf(work);
  const model = createModel(device, config, { seed: 1 });
  const { learningRate, ...optimizer } = OPTIMIZER;
  const step = await tuned(device, options, () =>
    compileStep(model, {
      rows: rows * context,
      optimizer: { ...optimizer, clip: CLIP },
      dropout: false,
      precision: work.precision,
    }));
  const ids = (shift: number) =>
    Array.from(
      { length: rows },
      (_, row) => Array.from({ length: context }, (_, i) => tokenAt(row * context + i + shift, vocabulary)),
    );
  const batch = denseBatch(config, ids(0), ids(1));
  let update = 0;
  const run = async () => {
    update++;
    step.microstep(batch, { scale: 1 / batch.validTargets, seed: 0, update, firstRow: 0 });
    step.update({ learningRate, update });
    await step.report();
  };
  return {
    ...contender("wgpt", run),
    async profile(whole) {
      await step.startProfile();
      await run();
      return await step.endProfile(whole);
    },
    [Symbol.asyncDispose]() {
      step[Symbol.dispose]();
      model[Symbol.dispose]();
      return Promise.resolve();
    },
  };
}

/** A step's results beside its peers', and the device it ran on. */
export async function measureStep(
  work: StepWork,
  peers: readonly Peer[],
  options: BenchOptions,
): Promise<Measured & { readonly device: Device; readonly notes: readonly string[] }> {
  const { repeats = REPEATS, progress } = options;
  using device = await openDevice();
  await using ours = await openStep(device, work, options);
  const amount = { flops: stepFlops(work), tokens: work.rows * work.context };
  const measured = await compare({ name: work.name, amount, ours, peers, repeats, progress });
  const [own, ...theirs] = measured.results;
  const results = [{ ...own, peak_device_bytes: device.peakBytes }, ...theirs];
  const notes = options.profile ? [`\n${work.name}`, await ours.profile(own.median_ms)] : [];
  return { ...measured, results, device, notes };
}

export async function benchStep(options: BenchOptions): Promise<Bench> {
  const measured = [];
  for (const work of select(STEPS, options.case)) {
    measured.push(await measureStep(work, options.peers && work.precision === "f32" ? await torch(work) : [], options));
  }
  const [{ device }] = measured;
  const { results, failed, peers } = join(measured);
  const notes = measured.flatMap(({ notes }) => notes);
  const config = { repeats: options.repeats ?? REPEATS, peers };
  return { name: "step", adapter: device.name, driver: driverOf(device.info), config, results, failed, notes };
}
