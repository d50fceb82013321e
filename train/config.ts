/**
 * One flat record of everything a run can be told. The table below is the only list of settings: flags, config files, help
 * and checks all come from it. It knows no data and no model.
 */
import { floatTypes } from "../kernels/cast.ts";
import {
  checkObject,
  choice,
  defaultsOf,
  flag,
  helpText,
  integer,
  number,
  parseFlags,
  text,
  type Values,
  wrap,
} from "../model/arguments.ts";
import { readFolder } from "../model/checkpoint.ts";
import { recomputations } from "../model/context.ts";
import { UserError } from "../model/errors.ts";
import { readJson } from "../model/json_fields.ts";
import { modelFolder } from "../model/runs.ts";
import { isolations, wires } from "./job.ts";
import { presetNames, presets } from "./presets.ts";

const rate = { min: 0, max: 0.999 };
const atLeastOne = { min: 1 };

export const fields = {
  preset: choice(presetNames, "tiny", "settings to start from"),
  data: text("", "a folder made by `deno task prepare`; without it the embedded corpus is prepared and used"),
  out: text("", "the run's folder; without it the next free one under runs/"),
  resume: flag("go on from the newest checkpoint of --out, or of the newest run"),
  initFrom: text("", "start from the weights of this Hugging Face GPT-2 folder, with a fresh optimizer"),
  seed: integer(1, "decides initial weights, the order of the data, dropout and samples", { min: 0, max: 2 ** 32 - 1 }),

  tokenizer: text("", "tokenizer of the embedded corpus: gpt2, bytes or a folder; without it one is trained"),
  vocabularySize: integer(4096, "tokens of the tokenizer that is trained", { min: 257, max: 1_000_000 }),
  context: integer(128, "tokens the model looks back on; rows have this length", atLeastOne),
  documents: choice(["separate", "joined"], "separate", "whether attention and positions restart at each document"),

  nLayer: integer(4, "blocks", atLeastOne),
  nHead: integer(4, "attention heads; they divide the width", atLeastOne),
  nEmbd: integer(128, "width", atLeastOne),
  initializerRange: number(0.02, "standard deviation of new weights; GPT-2's own, for widths near 768", {
    min: Number.MIN_VALUE,
  }),
  dropout: number(0, "rate of embedding, residual and attention dropout", rate),

  microBatch: integer(8, "rows computed at once on an adapter, at most", atLeastOne),
  batchTokens: integer(0, "tokens an update, over microbatches and adapters; 0 takes one microbatch"),
  steps: integer(0, "updates; 0 counts epochs instead"),
  epochs: number(1, "passes over the training data, where steps is 0"),

  learningRate: number(1e-3, "peak learning rate"),
  minLearningRate: number(0, "what the learning rate falls to"),
  warmup: integer(0, "updates in which the learning rate rises"),
  schedule: choice(["cosine", "linear", "constant"], "cosine", "how the learning rate falls after the warm-up"),
  beta1: number(0.9, "AdamW: memory of the mean gradient", rate),
  beta2: number(0.99, "AdamW: memory of the mean squared gradient", { min: 0, max: 0.999999 }),
  eps: number(1e-8, "AdamW: added to the divisor", { min: Number.MIN_VALUE }),
  weightDecay: number(0.1, "AdamW: decay of matrices, by the learning rate; vectors have none"),
  clip: number(1, "largest gradient norm; larger ones are scaled down; 0 clips nothing"),
  precision: choice(floatTypes, "f32", "what products with weights compute in; the weights themselves are kept as f32"),
  recompute: choice(
    recomputations,
    "none",
    "what the backward pass computes again: less memory, more time; attention: all but products with weights",
  ),
  memory: number(0, "GB a run may take on the device; 0 takes what the machine has"),
  dryRun: flag("print memory, work and expected time, and start nothing"),

  adapters: text(
    "",
    "adapters to train on: names or numbers of `deno task adapters` by comma, or all; every GPU if empty",
  ),
  ranks: integer(0, "how many devices train together; more than adapters share them, for tests; 0: one an adapter"),
  isolation: choice(isolations, "worker", "ranks as threads of one process, or as processes that crash alone"),
  communicator: choice(["auto", "mpi"], "auto", "how ranks of several machines sum: mpi under mpirun"),
  wire: choice(wires, "f32", "what gradients travel in between ranks"),
  shardOptimizer: flag("each rank keeps and updates its share of the moments (ZeRO-1): less memory, the same bits"),
  balance: flag("unequal adapters: measure their speeds and share microbatches out in proportion"),
  maxRestarts: integer(3, "how often a run goes on by itself from its last checkpoint when a rank dies or hangs"),
  hangSeconds: number(300, "a rank without a sign of life for so long counts as dead", { min: 1 }),

  logEvery: integer(1, "updates between two readings of the loss", atLeastOne),
  evalEvery: integer(50, "updates between two measurements of the held-out loss; 0 only at checkpoints"),
  evalBatches: integer(8, "microbatches of held-out rows to measure; 0 takes all"),
  sampleEvery: integer(100, "updates between two samples; 0 only at the end"),
  samplePrompt: text("", "what samples go on from; without it the start of a document"),
  sampleTokens: integer(64, "tokens of a sample"),
  checkpointEvery: integer(100, "updates between two checkpoints; 0 only at the end"),
  keepCheckpoints: integer(2, "newest checkpoints kept, besides the one with the best held-out loss", atLeastOne),

  tune: choice(
    ["off", "cached", "full"],
    "cached",
    "time kernels before the first step: new ones, or all again; a " +
      "resumed run keeps those it began with",
  ),
  dashboard: text("", "a port of this machine at which a page shows the run while it trains; 0 takes a free one"),
  profile: flag("after the first steps, measure one kernel by kernel and print where its time goes"),
  tuneSeconds: number(30, "time for new kernels; what doesn't fit is tuned before the next run"),
};

export type Config = Values<typeof fields>;
type FieldName = keyof Config;

/** Settings that a resumed run may change: they don't touch what is learned, or, as the length, are the reason to go on. */
const changeable: readonly FieldName[] = [
  "preset",
  "data",
  "out",
  "resume",
  "steps",
  "epochs",
  "logEvery",
  "evalEvery",
  "evalBatches",
  "sampleEvery",
  "samplePrompt",
  "sampleTokens",
  "checkpointEvery",
  "keepCheckpoints",
  "adapters",
  "ranks",
  "isolation",
  "communicator",
  "shardOptimizer",
  "balance",
  "maxRestarts",
  "hangSeconds",
  "memory",
  "dryRun",
  "tune",
  "tuneSeconds",
  "profile",
  "dashboard",
];

/** Two settings for one thing: a layer that sets one unsets what an earlier layer said of the other. */
const ALTERNATIVES = ["steps", "epochs"] as const;

const USAGE = `Trains a GPT-2. With no flags: a small one, on State of the Union addresses, in minutes.

  deno task train [--config FILE] [--preset NAME] [--data DIR] [--out RUN] [--resume] [--any-field value]

Flags count more than the config file (JSON, the same names in camelCase), the file more than the preset.`;

export interface Settings {
  readonly config: Config;
  /** Only what the preset, the config file or flags said. */
  readonly given: Partial<Config>;
  /** Of these, what the user wrote: without the preset. */
  readonly written: Partial<Config>;
}

/**
 * Reads the command line. `base` stands in the place of the defaults: a resumed run's own settings.
 *
 * @returns help where it was asked for.
 * @throws UserError with exit code 2 for anything unknown or malformed.
 */
export async function readSettings(args: readonly string[]): Promise<Settings | { readonly help: string }> {
  const configFile = { config: text("", "a JSON file with any of the settings below") };
  const { values, help } = parseFlags({ ...configFile, ...fields }, args);
  if (help) return { help: helpText(USAGE, { ...configFile, ...fields }) };
  const { config: file, ...flags } = values as Partial<Config> & { config?: string };
  const fromFile = file === undefined ? {} : checkObject(fields, await readJson(file), file);
  refuseBoth(flags);
  const written = layered(fromFile, flags, flags.initFrom ? { initFrom: await modelFolder(flags.initFrom) } : {});
  const preset = presets[written.preset ?? fields.preset.default];
  const given = written.preset === undefined ? written : layered(preset, written);
  const shape = written.initFrom ? await shapeOf(written.initFrom, written, preset.context) : {};
  return { config: complete(layered(preset, shape, written)), given, written };
}

/** What a folder to start from decides: the model's shape, a context that fits, and the embedded corpus's tokenizer. */
async function shapeOf(folder: string, written: Partial<Config>, context?: number): Promise<Partial<Config>> {
  using files = await readFolder(folder);
  const { n_layer, n_head, n_embd, n_positions } = files.config;
  return {
    nLayer: n_layer,
    nHead: n_head,
    nEmbd: n_embd,
    context: Math.min(context ?? fields.context.default, n_positions),
    ...written.data === undefined && written.tokenizer === undefined ? { tokenizer: folder } : {},
  };
}

/** A resumed run's settings: its own, changed where that is allowed. @throws UserError naming every field that differs. */
export function resumedConfig(saved: Config, given: Partial<Config>): Config {
  const fixed = (Object.keys(given) as FieldName[]).filter((name) => !changeable.includes(name));
  const differing = fixed.filter((name) => given[name] !== saved[name]);
  if (differing.length > 0) {
    const list = differing.map((name) => `${name} was ${show(saved[name])}, now ${show(given[name])}`).join("; ");
    throw new UserError(
      `Cannot resume with other settings: ${list}; drop them, or start a new run without --resume`,
      2,
    );
  }
  return complete(layered({ ...saved, dashboard: "" }, given)); // a page was wished for that time; its port may be taken
}

/** Settings saved in a run, checked like a file a person wrote. @throws UserError where they aren't whole. */
export function parseConfig(json: unknown, file: string): Config {
  return complete(checkObject(fields, json, file));
}

/** Every setting that two configs disagree on. */
export function differences(a: Config, b: Config): FieldName[] {
  return (Object.keys(fields) as FieldName[]).filter((name) => a[name] !== b[name]);
}

/** The config as lines to print: name and value. */
export function describeConfig(config: Config): string {
  const parts = (Object.keys(fields) as FieldName[])
    .filter((name) => config[name] !== "" && config[name] !== false)
    .map((name) => `${name} ${config[name]}`);
  return wrap(parts.join(", "), 100).join("\n");
}

function layered(...layers: readonly Partial<Config>[]): Partial<Config> {
  return layers.reduce((under, over) => {
    const kept: Record<string, unknown> = { ...under };
    if (ALTERNATIVES.some((name) => over[name])) { for (const name of ALTERNATIVES) delete kept[name]; }
    return { ...kept, ...over };
  }, {});
}

function refuseBoth({ steps, epochs }: Partial<Config>): void {
  if (steps && epochs !== undefined) {
    throw new UserError(`Give steps or epochs, not both: found steps ${steps} and epochs ${epochs}`, 2);
  }
}

/** Fills in defaults and checks what no single field can see. */
function complete(given: Partial<Config>): Config {
  const config = { ...defaultsOf(fields), ...given };
  const { nEmbd, nHead, microBatch, context, batchTokens, learningRate, minLearningRate } = config;
  const refuse = (message: string) => {
    throw new UserError(message, 2);
  };
  if (nEmbd % nHead !== 0) refuse(`Choose a width that heads divide: --n-embd ${nEmbd} and --n-head ${nHead}`);
  if (batchTokens % (microBatch * context) !== 0) {
    const rows = `--micro-batch ${microBatch} × --context ${context} = ${microBatch * context}`;
    refuse(`Choose --batch-tokens as a multiple of a microbatch: found ${batchTokens}, and ${rows}`);
  }
  if (minLearningRate > learningRate) {
    refuse(`Choose a smaller --min-learning-rate: ${minLearningRate} is above the peak ${learningRate}`);
  }
  if (!/^(\d{1,5})?$/.test(config.dashboard) || Number(config.dashboard) > 65535) {
    refuse(`--dashboard: found ${JSON.stringify(config.dashboard)}, wanted a port from 0 to 65535`);
  }
  if (config.dashboard !== "" && config.communicator === "mpi") {
    refuse("Start `deno task dashboard RUN` on its own: --dashboard doesn't go with --communicator mpi");
  }
  if (config.steps === 0 && config.epochs === 0) refuse("Give --steps or --epochs: both are 0");
  return config;
}

function show(value: unknown): string {
  return value === "" ? "unset" : String(value);
}
