/** A model in training on the best GPU of the machine. It knows no data and no files. */
import { openDevice } from "../kernels/gpu/device.ts";
import { createModel, Model } from "../model/model.ts";
import { PlainGenerator } from "../model/plain_generator.ts";
import { withKernels } from "./kernels.ts";
import type { OpenLearner } from "./learner.ts";
import { compileStep } from "./step.ts";

/**
 * Opens the GPU and builds everything on it.
 *
 * @throws UserError with exit code 3 without an adapter.
 */
export const openLearner: OpenLearner = async (options) => {
  const { config, model: shape, initialize } = options;
  await using opened = new AsyncDisposableStack();
  const device = opened.use(await openDevice());
  const model = opened.use(
    initialize ? createModel(device, shape, { seed: config.seed }) : new Model(device, shape),
  );
  const { beta1, beta2, eps, weightDecay, clip, recompute, dropout, precision } = config;
  const rows = config.microBatch * config.context;
  const optimizer = { beta1, beta2, eps, weightDecay, clip };
  const { built: step, kernels } = await withKernels(device, { ...options, recorded: options.kernels }, () => {
    return compileStep(model, { rows, optimizer, dropout: dropout > 0, recompute, precision });
  });
  opened.use(step);
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
    engine: () => engine ??= owned.use(new PlainGenerator(model)),
    tensors: (kind) => step.tensors(kind),
    load: (kind, name, data) => step.load(kind, name, data),
    startProfile: () => step.startProfile(),
    endProfile: (whole) => step.endProfile(whole),
    lossScaling: () => step.lossScaling(),
    loadLossScaling: (scaling) => step.loadLossScaling(scaling),
    describe: () => step.describe(),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
};
