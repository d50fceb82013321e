/** A model in training on a GPU, alone or as one of several ranks. It knows no data and no files. */
import { chooseAdapters, listAdapters, openAdapter } from "../kernels/gpu/adapters.ts";
import { type Device, openDevice } from "../kernels/gpu/device.ts";
import type { Capabilities } from "../kernels/gpu/graph.ts";
import { OutOfMemoryError } from "../model/errors.ts";
import { createModel } from "../model/load.ts";
import { Model } from "../model/model.ts";
import { PlainGenerator } from "../model/plain_generator.ts";
import { shapeOf } from "../model/shape.ts";
import { stepOptions, tooLarge } from "./fit.ts";
import { footprint, formatMemory } from "./footprint.ts";
import { withKernels } from "./kernels.ts";
import { alone, type Communicator } from "./communicator.ts";
import type { LearnerOptions } from "./learner.ts";
import type { OpenRankLearner, RankLearner } from "./parallel.ts";
import { compileStep, type Step } from "./step.ts";

/** Where a rank computes and with whom. */
export interface RankPlace {
  readonly openDevice: () => Promise<Device>;
  readonly communicator: Communicator;
  /** Each rank updates its share of the parameters. */
  readonly shard: boolean;
}

/**
 * Opens a rank's GPU and builds everything on it.
 *
 * @throws UserError with exit code 3 without an adapter, and with ways out where the adapter has no memory for it.
 */
export function openRankLearner(place: RankPlace): OpenRankLearner {
  return async (options) => {
    const device = await place.openDevice();
    try {
      return await build(device, options, place);
    } catch (error) {
      device[Symbol.dispose]();
      throw await withWaysOut(error, options, device.capabilities);
    }
  };
}

/** Opens the best GPU of the machine alone; throws as `openRankLearner` does. */
export const openLearner = openRankLearner({ openDevice, communicator: alone(), shard: false });

/** Opens the first adapter of those that the settings name; throws as `openRankLearner` does. */
export const openChosenLearner: OpenRankLearner = async (options) => {
  const [choice] = chooseAdapters(await listAdapters(), options.config.adapters, 0);
  return await openRankLearner({ openDevice: () => openAdapter(choice), communicator: alone(), shard: false })(options);
};

/** An adapter that refused memory, said as a run that is too large. */
export async function withWaysOut(
  error: unknown,
  options: LearnerOptions,
  capabilities: Capabilities,
): Promise<unknown> {
  if (!(error instanceof OutOfMemoryError)) return error;
  const { config, model } = options;
  const seeking = { limit: error.held, shape: shapeOf(model), config, capabilities };
  return await tooLarge(`Cannot train: ${error.message}`, seeking);
}

async function build(device: Device, options: LearnerOptions, place: RankPlace): Promise<RankLearner> {
  const { config, model: shape, initialize, kernelsOf = device.name } = options;
  await using opened = new AsyncDisposableStack();
  const model = opened.use(
    initialize ? createModel(device, shape, { seed: config.seed }) : new Model(device, shape),
  );
  const settings = stepOptions(config);
  const recorded = kernelsOf === device.name ? options.kernels : undefined;
  const { built: step, kernels } = await withKernels(device, { ...options, recorded }, () => {
    const { communicator, shard } = place;
    const sharing = communicator.size === 1 ? undefined : { communicator, wire: config.wire, shard };
    return compileStep(model, settings, sharing);
  });
  opened.use(step);
  const { rank, size } = place.communicator;
  const sharing = size === 1 ? undefined : { rank, size, wire: config.wire, shard: place.shard };
  const planned = await footprint(
    model,
    settings,
    device.capabilities,
    (offers) => device.chooser!.choose(offers),
    sharing,
  );
  const owned = opened.move();
  let engine: PlainGenerator | undefined;
  return {
    config: shape,
    device: device.name,
    parameters: model.parameterCount,
    deviceBytes: () => device.bytes,
    kernels,
    speed: () => speed(step),
    sharded: step.sharded !== null,
    accumulate: (work) => step.accumulate(work),
    update: (options) => step.update(options),
    report: () => step.report(),
    evaluate: (batch) => step.evaluate(batch),
    engine: () => engine ??= owned.use(new PlainGenerator(model, { workspace: step.workspace })),
    tensors: (kind) => step.tensors(kind),
    load: (kind, name, data) => Promise.resolve(step.load(kind, name, data)),
    startProfile: () => step.startProfile(),
    endProfile: (whole) => step.endProfile(whole),
    agree: () => Promise.resolve(),
    lossScaling: () => step.lossScaling(),
    loadLossScaling: (scaling) => Promise.resolve(step.loadLossScaling(scaling)),
    describe: () => `${step.describe()}\n${formatMemory(planned)}`,
    async [Symbol.asyncDispose]() {
      await owned.disposeAsync();
      device[Symbol.dispose]();
    },
  };
}

/** Microsteps a second, from a few over rows without a target that counts. */
async function speed(step: Step): Promise<number> {
  const { rows } = step.options;
  const index = Uint32Array.from({ length: rows }, (_, row) => row % step.model.config.n_positions);
  const batch = {
    tokens: new Uint32Array(rows),
    targets: new Int32Array(rows),
    positions: index,
    starts: index.map((position, row) => row - position),
    validTargets: rows,
  };
  const run = async (times: number) => {
    const began = performance.now();
    for (let i = 0; i < times; i++) step.microstep(batch, { scale: 0, seed: 0, update: 1, firstRow: 0 });
    await step.report(); // waits
    return (performance.now() - began) / 1000;
  };
  await run(1); // compiles
  const times = Math.max(1, Math.ceil(SPEED_SECONDS / await run(1)));
  return times / await run(times);
}

/** Time to measure a rank's speed in. */
const SPEED_SECONDS = 1;
