/** A model in training on the best GPU of the machine. It knows no data and no files. */
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
import type { Learner, LearnerOptions, OpenLearner } from "./learner.ts";
import { compileStep } from "./step.ts";

/**
 * Opens the GPU and builds everything on it.
 *
 * @throws UserError with exit code 3 without an adapter, and with ways out where the adapter has no memory for it.
 */
export const openLearner: OpenLearner = async (options) => {
  const device = await openDevice();
  try {
    return await build(device, options);
  } catch (error) {
    device[Symbol.dispose]();
    throw await withWaysOut(error, options, device.capabilities);
  }
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

async function build(device: Device, options: LearnerOptions): Promise<Learner> {
  const { config, model: shape, initialize } = options;
  await using opened = new AsyncDisposableStack();
  const model = opened.use(
    initialize ? createModel(device, shape, { seed: config.seed }) : new Model(device, shape),
  );
  const settings = stepOptions(config);
  const { built: step, kernels } = await withKernels(device, { ...options, recorded: options.kernels }, () => {
    return compileStep(model, settings);
  });
  opened.use(step);
  const planned = await footprint(model, settings, device.capabilities, (offers) => device.chooser!.choose(offers));
  const owned = opened.move();
  let engine: PlainGenerator | undefined;
  return {
    config: shape,
    device: device.name,
    parameters: model.parameterCount,
    kernels,
    microstep: (batch, place) => step.microstep(batch, place),
    update: (options) => step.update(options),
    report: () => step.report(),
    evaluate: (batch) => step.evaluate(batch),
    engine: () => engine ??= owned.use(new PlainGenerator(model, { workspace: step.workspace })),
    tensors: (kind) => step.tensors(kind),
    load: (kind, name, data) => step.load(kind, name, data),
    startProfile: () => step.startProfile(),
    endProfile: (whole) => step.endProfile(whole),
    lossScaling: () => step.lossScaling(),
    loadLossScaling: (scaling) => step.loadLossScaling(scaling),
    describe: () => `${step.describe()}\n${formatMemory(planned)}`,
    async [Symbol.asyncDispose]() {
      await owned.disposeAsync();
      device[Symbol.dispose]();
    },
  };
}
