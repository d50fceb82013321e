/**
 * What a run will be, before it is one: refused where it can't fit, and with --dry-run printed with its memory, its work and
 * the time its steps should take. It makes no folder, prepares no data and writes nothing.
 */
import { join } from "node:path";
import { type AdapterChoice, openAdapter } from "../kernels/gpu/adapters.ts";
import type { Device } from "../kernels/gpu/device.ts";
import { type Capabilities, count } from "../kernels/gpu/graph.ts";
import { UserError } from "../model/errors.ts";
import { exists } from "../model/files.ts";
import { duration } from "../model/progress.ts";
import { type Shape, shapeOf } from "../model/shape.ts";
import { loadTokenizer } from "../model/tokenizer.ts";
import { calibrate } from "./calibrate.ts";
import { type Config, describeConfig, type Settings } from "./config.ts";
import { limitOf, refuseTooLarge, stepOptions } from "./fit.ts";
import { type Footprint, footprint, formatMemory, type PlannedSharing } from "./footprint.ts";
import { availableMemory } from "./machine_memory.ts";
import { MANIFEST, readManifest } from "./manifest.ts";
import { corpusFolder } from "./prepared_corpus.ts";
import { standingRun } from "./run_folder.ts";
import { rowsOf, updateShape } from "./shares.ts";
import { startingPoint, type Vocabulary } from "./starting_point.ts";

/**
 * Plans the run on its adapters, one a rank, as the first of them has it.
 *
 * @returns what to print where the run is a dry one, else nothing.
 * @throws UserError with ways out where the run can't fit.
 */
export async function planRun(settings: Settings, adapters: readonly AdapterChoice[]): Promise<string | undefined> {
  const { config: own, checkpoint } = settings.config.resume
    ? await standingRun(settings)
    : { config: settings.config };
  const size = adapters.length;
  const config = { ...own, microBatch: updateShape(own, size).rows, batchTokens: rowsOf(own) * own.context };
  const sharing = size === 1 ? undefined : { rank: 0, size, wire: config.wire, shard: config.shardOptimizer };
  const { model } = await startingPoint(config, await vocabularyOf(config), checkpoint);
  const shape = shapeOf(model);
  using device = await openAdapter(adapters[0]);
  const { capabilities } = device;
  const planned = await footprintOf(shape, config, capabilities, sharing);
  const limit = limitOf(settings.config.memory, capabilities.cpu, availableMemory());
  await refuseTooLarge(planned, limit, shape, config, capabilities);
  return settings.config.dryRun ? await describeRun(device, config, shape, planned, size) : undefined;
}

/** @throws UserError where an operation can't take a microbatch's rows on this adapter. */
async function footprintOf(
  shape: Shape,
  config: Config,
  capabilities: Capabilities,
  sharing?: PlannedSharing,
): Promise<Footprint> {
  try {
    return await footprint(shape, stepOptions(config), capabilities, undefined, sharing);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    const batch = `--micro-batch ${config.microBatch} x --context ${config.context}`;
    throw new UserError(`Lower --micro-batch: the adapter can't take ${batch}: ${error.message}`);
  }
}

/** The vocabulary that the run's data has or, where they aren't prepared yet, will have. */
export async function vocabularyOf(config: Config): Promise<Vocabulary> {
  const folder = config.data === "" ? await corpusFolder(config) : config.data;
  if (config.data !== "" || await exists(join(folder, MANIFEST))) return await readManifest(folder);
  if (config.tokenizer === "") return { vocabSize: config.vocabularySize, endOfText: 0 };
  const { vocabSize, endOfText = 0 } = await loadTokenizer(config.tokenizer);
  return { vocabSize, endOfText };
}

async function describeRun(
  device: Device,
  config: Config,
  shape: Shape,
  planned: Footprint,
  ranks: number,
): Promise<string> {
  const { microBatch, context, batchTokens: tokens, precision } = config;
  const accumulate = Math.ceil(tokens / (microBatch * context) / ranks);
  const { microstep, update } = planned;
  const rates = await calibrate(device, precision);
  const seconds = accumulate * microstep.seconds(rates) + update.seconds(rates);
  const parameters = shape.declared.reduce((sum, { shape }) => sum + count({ shape, dtype: "f32" }), 0);
  const flops = microstep.flops / (microBatch * context);
  const launches = `${microstep.dispatches} dispatches a microstep, ${update.dispatches} an update`;
  const measured = `${scaled(rates.flops)}FLOP/s in a product, ${scaled(rates.bytes)}B/s in a sum`;
  return [
    describeConfig({ ...config, dryRun: false }),
    "",
    `${ranks === 1 ? "" : `${ranks} ranks, each: `}${device.name}, ${parameters.toLocaleString("en-US")} parameters, ${
      scaled(flops)
    }FLOP a token, ${launches}`,
    formatMemory(planned),
    `expected: ${stepTime(seconds)} an update of ${tokens.toLocaleString("en-US")} tokens, ` +
    `${Math.round(tokens / seconds).toLocaleString("en-US")} tokens/s` +
    (config.steps > 0 ? `, ${duration(config.steps * seconds)} for ${config.steps} updates` : ""),
    `  (a prediction from ${measured}; evaluations, samples and checkpoints come on top)`,
    "nothing was started",
    "",
  ].join("\n");
}

function stepTime(seconds: number): string {
  return seconds < 10 ? `${seconds.toPrecision(2)} s` : duration(seconds);
}

/** `1.23 G`: a number with its prefix. */
function scaled(value: number): string {
  const steps = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]] as const;
  const [step, prefix] = steps.find(([step]) => value >= step) ?? [1, ""];
  return `${(value / step).toPrecision(3)} ${prefix}`;
}
