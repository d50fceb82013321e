/**
 * One training step on one device, as three programs made from one model: microstep (forward, backward, gradients added),
 * update (norm, clip, AdamW) and evaluate. It knows no data, no schedule and no files.
 */
import { adamw, type AdamWOptions } from "../kernels/adamw.ts";
import { Graph } from "../kernels/gpu/graph.ts";
import { accumulate, zero } from "../kernels/gpu/primitives.ts";
import { compile, type Program } from "../kernels/gpu/program.ts";
import { megabytes } from "../kernels/gpu/plan.ts";
import { scale } from "../kernels/pointwise.ts";
import { clipCoefficient, sumOfSquares } from "../kernels/reduce.ts";
import { denseContext } from "../model/context.ts";
import type { DenseBatch } from "../model/batch.ts";
import type { Model, NamedTensor } from "../model/model.ts";
import { UserError } from "../model/errors.ts";
import { evaluation, objective } from "../model/objective.ts";
import {
  allocatePrecision,
  compileRefresh,
  formatsOf,
  lossScale,
  type LossScaling,
  lossScalingOf,
  type Precision,
  readLossScaling,
  unscaled,
  writeLossScaling,
} from "./precision.ts";

/** Decoupled weight decay (Loshchilov and Hutter 2019); decay goes to tensors of two and more dimensions. */
export interface OptimizerOptions extends AdamWOptions {
  /** Largest norm of all gradients together; larger ones are scaled down. 0 clips nothing. */
  readonly clip: number;
}

export interface StepOptions {
  /** Rows of a microbatch. */
  readonly rows: number;
  readonly optimizer: OptimizerOptions;
  /** Drop as the model's configuration asks. */
  readonly dropout: boolean;
  readonly recompute?: "none" | "block";
  /** Default: f32. */
  readonly precision?: Precision;
}

/** What an update was. */
export interface Report {
  readonly loss: number;
  readonly gradNorm: number;
  /** After the update; in f16 only. */
  readonly lossScaling?: LossScaling;
}

/** Where a microbatch stands, so that dropout depends on nothing else. */
export interface Place {
  readonly seed: number;
  /** Number of the update, counted from 1. */
  readonly update: number;
  /** Index of the microbatch's first row within the whole update. */
  readonly firstRow: number;
}

/** Kinds of variables that a checkpoint keeps, by the prefix of their names. */
export const kinds = { parameter: "", expAvg: "exp_avg/", expAvgSq: "exp_avg_sq/" } as const;
export type Kind = keyof typeof kinds;

const GRADIENT = "gradient/";
/** Sum of the losses of the microsteps since the last update. */
const LOSS = "loss";

/** A norm that no finite gradient passes. */
const UNCLIPPED = 3e38;

/**
 * Compiles the programs of a step and allocates gradients, moments and what its precision needs beside the model's
 * parameters.
 *
 * @throws UserError where the model's weights aren't f32.
 */
export async function compileStep(model: Model, options: StepOptions): Promise<Step> {
  checkTrainable(model);
  const { store } = model;
  const { precision = "f32" } = options;
  store.allocate("gradient", model.entries(GRADIENT));
  store.allocate("exp_avg", model.entries(kinds.expAvg));
  store.allocate("exp_avg_sq", model.entries(kinds.expAvgSq));
  store.allocate("loss", [{ name: LOSS, shape: [1], dtype: "f32" }]);
  allocatePrecision(model, precision);
  const [refresh, update] = [await compileRefresh(model, precision), await compileUpdate(model, options)];
  const step = new Step(model, options, update, refresh);
  await step.prepare(options.rows);
  return step;
}

/** @throws UserError where the model's weights aren't f32. */
export function checkTrainable({ formats: { weights = "f32" } }: Model): void {
  if (weights === "f32") return;
  throw new UserError(`Cannot train weights kept as ${weights}: load the model as f32 and give a precision instead`, 2);
}

function compileMicrostep(
  model: Model,
  rows: number,
  { dropout, recompute, precision = "f32" }: StepOptions,
): Promise<Program> {
  const graph = new Graph();
  const context = denseContext(graph, rows, { dropout, recompute, longest: model.config.n_positions });
  const { loss } = objective(graph, model.architecture, context, model.config.vocab_size, {
    formats: formatsOf(precision),
    into: ({ name, padded }) => graph.variable(GRADIENT + name, padded),
    lossScale: lossScale(graph, precision),
  });
  accumulate(graph.variable(LOSS, [1]), loss);
  return compile(model.device, graph, {}, model.store);
}

function compileUpdate(model: Model, { optimizer: { clip, ...options }, precision }: StepOptions): Promise<Program> {
  const graph = new Graph();
  const flat = (kind: string) =>
    model.store.ranges(kind).map((range) => ({ ...range, tensor: graph.variable(range.name, [range.elements]) }));
  const gradients = flat("gradient");
  const [expAvg, expAvgSq] = [flat("exp_avg"), flat("exp_avg_sq")];
  const squaredNorm = sumOfSquares(gradients.map(({ tensor }) => tensor));
  const maxNorm = clip || UNCLIPPED;
  const loss = graph.variable(LOSS, [1]);
  const { hyper, ...outputs } = precision === "f16"
    ? unscaled(squaredNorm, loss, { maxNorm, ...options })
    : { loss: scale(loss, 1), clip: clipCoefficient(squaredNorm, maxNorm), hyper: graph.input("hyper", [4]) };
  flat("parameter").forEach(({ tensor, decay }, i) => {
    const weightDecay = decay ? options.weightDecay : 0;
    adamw(tensor, gradients[i].tensor, expAvg[i].tensor, expAvgSq[i].tensor, hyper, outputs.clip, {
      ...options,
      weightDecay,
    });
  });
  zero(loss);
  return compile(model.device, graph, outputs, model.store);
}

/** The compiled programs of a model in training; made by `compileStep`. */
export class Step implements Disposable {
  readonly #microsteps = new Map<number, Program>();
  #evaluate: Program | null = null;
  /** Whether parameters changed since products' copies of them were made. */
  #stale = true;

  constructor(
    readonly model: Model,
    readonly options: StepOptions,
    private readonly updater: Program,
    private readonly refresher: Program | null,
  ) {}

  get precision(): Precision {
    return this.options.precision ?? "f32";
  }

  /** Makes microbatches of another number of rows ready. */
  async prepare(rows: number): Promise<void> {
    if (!this.#microsteps.has(rows)) this.#microsteps.set(rows, await compileMicrostep(this.model, rows, this.options));
  }

  #microstep(rows: number): Program {
    const program = this.#microsteps.get(rows);
    if (program === undefined) throw new RangeError(`Cannot run a microbatch of ${rows} rows: it wasn't prepared`);
    return program;
  }

  #refresh(): void {
    if (this.#stale) this.refresher?.run();
    this.#stale = false;
  }

  /** Forward and backward; gradients are added. `scale` is 1 / the valid targets of the whole update. Doesn't wait. */
  microstep({ tokens, targets, positions, starts }: DenseBatch, options: Place & { readonly scale: number }): void {
    const program = this.#microstep(tokens.length);
    this.#refresh();
    const { seed, update, firstRow, scale } = options;
    const inputs = { tokens, targets, positions, starts, scale: new Float32Array([scale]) };
    const drops = program.inputs.includes("counter");
    program.run(drops ? { ...inputs, counter: new Uint32Array([seed, update, firstRow, 0]) } : inputs);
  }

  /**
   * Clips, applies AdamW and clears the gradients; skipped where a gradient isn't finite. In f16 skipped updates don't count
   * for AdamW, and `update` is not used. Doesn't wait.
   */
  update(options: { readonly learningRate: number; readonly update: number }): void {
    const { beta1, beta2 } = this.options.optimizer;
    const { learningRate, update } = options;
    if (this.precision === "f16") this.updater.run({ learning_rate: new Float32Array([learningRate]) });
    else {
      const hyper = [learningRate, 1 - beta1 ** update, Math.sqrt(1 - beta2 ** update), 0];
      this.updater.run({ hyper: new Float32Array(hyper) });
    }
    this.#stale = true;
  }

  /** The last update's loss, gradient norm (before clipping) and in f16 the scale after it. Waits for the GPU. */
  async report(): Promise<Report> {
    const scaling = this.precision === "f16" ? ["scale", "counts"] : [];
    const [loss, clip, ...rest] = await this.updater.read("loss", "clip", ...scaling);
    const report = { loss: new Float32Array(loss)[0], gradNorm: new Float32Array(clip)[1] };
    return scaling.length === 0 ? report : { ...report, lossScaling: lossScalingOf(rest) };
  }

  /** Where the loss scale stands, to go on from later; null but in f16. */
  async lossScaling(): Promise<LossScaling | null> {
    return this.precision === "f16" ? await readLossScaling(this.model) : null;
  }

  /** @throws RangeError where the precision has no loss scale. */
  loadLossScaling(scaling: LossScaling): void {
    writeLossScaling(this.model, scaling);
  }

  /** Sum of the losses over the valid targets, without dropout, and their number. */
  async evaluate(batch: DenseBatch): Promise<{ loss: number; targets: number }> {
    this.#evaluate ??= await this.#compileEvaluate();
    this.#refresh();
    const { tokens, targets, positions, starts, validTargets } = batch;
    this.#evaluate.run({ tokens, targets, positions, starts, scale: new Float32Array([1]) });
    const [loss] = await this.#evaluate.read("loss");
    return { loss: new Float32Array(loss)[0], targets: validTargets };
  }

  #compileEvaluate(): Promise<Program> {
    const graph = new Graph();
    const context = denseContext(graph, this.options.rows, { longest: this.model.config.n_positions });
    const formats = formatsOf(this.precision);
    const { loss } = evaluation(graph, this.model.architecture, context, this.model.config.vocab_size, formats);
    return compile(this.model.device, graph, { loss }, this.model.store);
  }

  /** Every parameter or moment by its checkpoint key, read one at a time. */
  tensors(kind: Kind): NamedTensor[] {
    return this.model.tensors(kinds[kind]);
  }

  /** Sets a parameter or moment by its checkpoint key. */
  load(kind: Kind, name: string, data: Float32Array): void {
    const parameter = this.model.declared.find((parameter) => this.model.key(parameter.name) === name);
    if (parameter === undefined) throw new RangeError(`Cannot load ${name}: the model has no such parameter`);
    this.model.store.write(kinds[kind] + parameter.name, data);
    this.#stale = true;
  }

  /** What the step holds and launches. */
  describe(): string {
    const { parameterCount, device } = this.model;
    const { dispatches } = this.#microstep(this.options.rows);
    return `${(parameterCount / 1e6).toFixed(2)} M parameters; a microstep has ${dispatches} dispatches, ` +
      `an update ${this.updater.dispatches}; ${megabytes(device.bytes)} on ${device.name}`;
  }

  [Symbol.dispose](): void {
    this.#evaluate?.[Symbol.dispose]();
    for (const program of this.#microsteps.values()) program[Symbol.dispose]();
    this.updater[Symbol.dispose]();
    this.refresher?.[Symbol.dispose]();
  }
}
