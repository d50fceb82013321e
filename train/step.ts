/**
 * One training step on one device, as three programs made from one model: microstep (forward, backward, gradients added),
 * update (norm, clip, AdamW) and evaluate. It knows no data, no schedule and no files.
 */
import { formatProfile, openProfiler, type Profiler } from "../kernels/gpu/profile.ts";
import { compile, type Program } from "../kernels/gpu/program.ts";
import { Workspace } from "../kernels/gpu/workspace.ts";
import { measureRoofline } from "../kernels/roofline.ts";
import type { DenseBatch } from "../model/batch.ts";
import { UserError } from "../model/errors.ts";
import type { Model, NamedTensor } from "../model/model.ts";
import {
  type DrawnGraph,
  evaluateGraph,
  type Kind,
  kinds,
  microstepGraph,
  refreshGraph,
  stepEntries,
  type StepOptions,
  updateGraph,
} from "./graphs.ts";
import {
  FIRST_SCALING,
  type LossScaling,
  lossScalingOf,
  type Precision,
  readLossScaling,
  writeLossScaling,
} from "./precision.ts";

export { type Kind, kinds, type OptimizerOptions, type StepOptions } from "./graphs.ts";

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
  for (const [kind, entries] of stepEntries(model, precision)) store.allocate(kind, entries);
  if (precision === "f16") writeLossScaling(model, FIRST_SCALING);
  const [refresh, update] = [refreshGraph(model, precision), updateGraph(store.layout, options)];
  const step = new Step(
    model,
    options,
    await compile(model.device, update.graph, update.outputs, store),
    refresh && await compile(model.device, refresh.graph, refresh.outputs, store),
  );
  await step.prepare(options.rows);
  return step;
}

/** @throws UserError where the model's weights aren't f32. */
export function checkTrainable({ formats: { weights = "f32" } }: Model): void {
  if (weights === "f32") return;
  throw new UserError(`Cannot train weights kept as ${weights}: load the model as f32 and give a precision instead`, 2);
}

/** The compiled programs of a model in training; made by `compileStep`. */
export class Step implements Disposable {
  readonly #microsteps = new Map<number, Program>();
  #evaluate: Program | null = null;
  /** Memory of microsteps and evaluation, which never run at once; samplers may use it between them too. */
  readonly workspace: Workspace;
  /** Whether parameters changed since products' copies of them were made. */
  #stale = true;
  #profiler: (Profiler & Disposable) | null = null;

  constructor(
    readonly model: Model,
    readonly options: StepOptions,
    private readonly updater: Program,
    private readonly refresher: Program | null,
  ) {
    this.workspace = new Workspace(model.device);
  }

  get precision(): Precision {
    return this.options.precision ?? "f32";
  }

  /** Makes microbatches of another number of rows ready. */
  async prepare(rows: number): Promise<void> {
    if (!this.#microsteps.has(rows)) {
      this.#microsteps.set(rows, await this.#compile(microstepGraph(this.model, rows, this.options)));
    }
  }

  #microstep(rows: number): Program {
    const program = this.#microsteps.get(rows);
    if (program === undefined) throw new RangeError(`Cannot run a microbatch of ${rows} rows: it wasn't prepared`);
    return program;
  }

  #refresh(): void {
    if (this.#stale && this.refresher) this.#run(this.refresher);
    this.#stale = false;
  }

  /** Forward and backward; gradients are added. `scale` is 1 / the valid targets of the whole update. Doesn't wait. */
  microstep({ tokens, targets, positions, starts }: DenseBatch, options: Place & { readonly scale: number }): void {
    const program = this.#microstep(tokens.length);
    this.#refresh();
    const { seed, update, firstRow, scale } = options;
    const inputs = { tokens, targets, positions, starts, scale: new Float32Array([scale]) };
    const drops = program.inputs.includes("counter");
    this.#run(program, drops ? { ...inputs, counter: new Uint32Array([seed, update, firstRow, 0]) } : inputs);
  }

  /**
   * Clips, applies AdamW and clears the gradients; skipped where a gradient isn't finite. In f16 skipped updates don't count
   * for AdamW, and `update` is not used. Doesn't wait.
   */
  update(options: { readonly learningRate: number; readonly update: number }): void {
    const { beta1, beta2 } = this.options.optimizer;
    const { learningRate, update } = options;
    if (this.precision === "f16") this.#run(this.updater, { learning_rate: new Float32Array([learningRate]) });
    else {
      const hyper = [learningRate, 1 - beta1 ** update, Math.sqrt(1 - beta2 ** update), 0];
      this.#run(this.updater, { hyper: new Float32Array(hyper) });
    }
    this.#stale = true;
  }

  /** The last update's loss, gradient norm (before clipping) and in f16 the scale after it. Waits for the GPU. */
  async report(): Promise<Report> {
    await this.#profiler?.settled();
    const scaling = this.precision === "f16" ? ["scale", "counts"] : [];
    const [loss, clip, ...rest] = await this.updater.read("loss", "clip", ...scaling);
    const report = { loss: new Float32Array(loss)[0], gradNorm: new Float32Array(clip)[1] };
    return scaling.length === 0 ? report : { ...report, lossScaling: lossScalingOf(rest) };
  }

  /** Where the loss scale stands, to go on from later; null but in f16. */
  async lossScaling(): Promise<LossScaling | null> {
    return this.precision === "f16" ? await readLossScaling(this.model) : null;
  }

  /** Sets the loss scale of a step in f16. */
  loadLossScaling(scaling: LossScaling): void {
    writeLossScaling(this.model, scaling);
  }

  /** Sum of the losses over the valid targets, without dropout, and their number. */
  async evaluate(batch: DenseBatch): Promise<{ loss: number; targets: number }> {
    this.#evaluate ??= await this.#compile(evaluateGraph(this.model, this.options));
    this.#refresh();
    const { tokens, targets, positions, starts, validTargets } = batch;
    this.#evaluate.run({ tokens, targets, positions, starts, scale: new Float32Array([1]) });
    const [loss] = await this.#evaluate.read("loss");
    return { loss: new Float32Array(loss)[0], targets: validTargets };
  }

  #run(program: Program, inputs?: Readonly<Record<string, ArrayBufferView>>): void {
    if (this.#profiler === null) program.run(inputs);
    else this.#profiler.run(program, inputs);
  }

  /** Measures microsteps and updates from now on, kernel by kernel, while they do what they always do. */
  async startProfile(): Promise<void> {
    this.#profiler ??= await openProfiler(this.model.device);
  }

  /** What was measured, as a table; `whole` is what the same work takes unmeasured, in milliseconds. */
  async endProfile(whole?: number): Promise<string> {
    if (this.#profiler === null) throw new Error("Cannot end a profile: none was started");
    using profiler = this.#profiler;
    await profiler.settled();
    this.#profiler = null;
    const roofline = await measureRoofline(this.model.device, profiler.stopwatch);
    return formatProfile(profiler.rows(roofline), roofline, whole);
  }

  /** Compiles a program into the workspace that all but the update take turns in. */
  #compile({ graph, outputs }: DrawnGraph): Promise<Program> {
    const { device, store } = this.model;
    return compile(device, graph, outputs, store, { workspace: this.workspace });
  }

  /** Every parameter or moment by its checkpoint key, read one at a time. */
  tensors(kind: Kind): NamedTensor[] {
    return this.model.tensors(kinds[kind]);
  }

  /** Sets a parameter or moment by its checkpoint key. */
  load(kind: Kind, name: string, data: Float32Array): void {
    const parameter = this.model.declared.find((parameter) => this.model.key(parameter.name) === name);
    if (parameter === undefined) throw new RangeError(`Cannot load ${name}: the model has no such parameter`);
    this.model.write(parameter, data, kinds[kind]);
    this.#stale = true;
  }

  /** What the step launches. */
  describe(): string {
    const { parameterCount, device } = this.model;
    const { dispatches, segments } = this.#microstep(this.options.rows);
    return `${
      (parameterCount / 1e6).toFixed(2)
    } M parameters on ${device.name}; a microstep has ${dispatches} dispatches ` +
      `in ${segments} ${segments === 1 ? "submit" : "submits"}, an update ${this.updater.dispatches}`;
  }

  [Symbol.dispose](): void {
    this.#profiler?.[Symbol.dispose]();
    this.#evaluate?.[Symbol.dispose]();
    for (const program of this.#microsteps.values()) program[Symbol.dispose]();
    this.updater[Symbol.dispose]();
    this.refresher?.[Symbol.dispose]();
    this.workspace[Symbol.dispose]();
  }
}
