/**
 * One training step on one device, as three programs made from one model: microstep (forward, backward, gradients added),
 * update (norm, clip, AdamW) and evaluate. Where ranks share updates, gradients are summed over them in between. It knows no
 * data, no schedule and no files.
 */
import { setImmediate as turn } from "node:timers/promises";
import { formatProfile, openProfiler, type Profiler } from "../kernels/gpu/profile.ts";
import { count, type Tensor } from "../kernels/gpu/graph.ts";
import { compile, type Program } from "../kernels/gpu/program.ts";
import { Workspace } from "../kernels/gpu/workspace.ts";
import { measureRoofline } from "../kernels/roofline.ts";
import type { DenseBatch } from "../model/batch.ts";
import { UserError } from "../model/errors.ts";
import type { Model, NamedTensor } from "../model/model.ts";
import { type Bucket, bucketsOf } from "./buckets.ts";
import type { Communicator } from "./communicator.ts";
import { type GradientExchange, openExchange } from "./exchange.ts";
import {
  type DrawnGraph,
  evaluateGraph,
  type Kind,
  kinds,
  LOSS,
  microstepGraph,
  microstepInputs,
  type Place,
  refreshGraph,
  stepEntries,
  type StepOptions,
  updateGraph,
  updateInputs,
} from "./graphs.ts";
import type { Wire } from "./job.ts";
import type { UpdateWork } from "./learner.ts";
import { type Sharded, shardedParts, viewParts } from "./parts.ts";
import {
  FIRST_SCALING,
  type LossScaling,
  lossScalingOf,
  type Precision,
  readLossScaling,
  writeLossScaling,
} from "./precision.ts";
import { ShardedState } from "./sharded_state.ts";

export { type Kind, kinds, type OptimizerOptions, type Place, type StepOptions } from "./graphs.ts";

/** What an update was. */
export interface Report {
  readonly loss: number;
  readonly gradNorm: number;
  /** After the update; in f16 only. */
  readonly lossScaling?: LossScaling;
}

/** How ranks share an update. */
export interface Sharing {
  readonly communicator: Communicator;
  readonly wire: Wire;
  /** Each rank keeps the moments of, and updates, its share of the parameters. */
  readonly shard: boolean;
  /** Default: BUCKET_BYTES, which is the most. */
  readonly bucketBytes?: number;
}

/** A program that adds to gradients, and when they are whole. */
interface Microstep {
  readonly program: Program;
  readonly buckets: readonly Bucket[];
}

/**
 * Compiles the programs of a step and allocates gradients, moments and what its precision needs beside the model's
 * parameters.
 *
 * @throws UserError where the model's weights aren't f32.
 */
export async function compileStep(model: Model, options: StepOptions, sharing?: Sharing): Promise<Step> {
  checkTrainable(model);
  const { store, store: { layout } } = model;
  const { precision = "f32" } = options;
  const parts = sharing?.shard ? shardedParts(layout.ranges("parameter"), sharing.communicator) : undefined;
  for (const [kind, entries] of stepEntries(model, precision, parts?.own)) store.allocate(kind, entries);
  if (parts !== undefined) viewParts(layout, parts);
  if (precision === "f16") writeLossScaling(model, FIRST_SCALING);
  const [refresh, update] = [refreshGraph(model, precision), updateGraph(layout, options, parts)];
  const step = new Step(
    model,
    options,
    await compile(model.device, update.graph, update.outputs, store),
    refresh && await compile(model.device, refresh.graph, refresh.outputs, store),
    sharing,
    parts,
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
  readonly #microsteps = new Map<number, Microstep>();
  #exchange: GradientExchange | null = null;
  /** Where the moments lie, where ranks share them. */
  readonly sharded: ShardedState | null;
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
    private readonly sharing?: Sharing,
    parts?: Sharded,
  ) {
    this.workspace = new Workspace(model.device);
    this.sharded = parts === undefined ? null : new ShardedState(model.store, parts, sharing!.communicator);
  }

  get precision(): Precision {
    return this.options.precision ?? "f32";
  }

  /** Makes microbatches of another number of rows ready. */
  async prepare(rows: number): Promise<void> {
    if (this.#microsteps.has(rows)) return;
    const { store } = this.model;
    const drawn = microstepGraph(this.model, rows, this.options);
    const buckets = this.sharing === undefined ? [] : bucketsOf(store.layout, drawn, this.sharing.bucketBytes);
    const program = await this.#compile(drawn, buckets.map(({ complete }) => complete));
    this.#microsteps.set(rows, { program, buckets });
    if (this.sharing !== undefined) this.#exchange ??= await openExchange(store, buckets, this.sharing);
  }

  #microstep(rows: number): Microstep {
    const microstep = this.#microsteps.get(rows);
    if (microstep === undefined) throw new RangeError(`Cannot run a microbatch of ${rows} rows: it wasn't prepared`);
    return microstep;
  }

  #refresh(): void {
    if (this.#stale && this.refresher) this.#run(this.refresher);
    this.#stale = false;
  }

  /** Forward and backward; gradients are added. `scale` is 1 / the valid targets of the whole update. Doesn't wait. */
  microstep(batch: DenseBatch, options: Place & { readonly scale: number }): void {
    const { program } = this.#microstep(batch.tokens.length);
    this.#refresh();
    this.#run(program, microstepInputs(program.inputs, batch, options));
  }

  /**
   * Forward and backward of all microbatches of an update, or of this rank's share of them. Returns when gradients and loss
   * are summed over all ranks; where there is only one, before the GPU is done.
   */
  async accumulate({ batches, firstRow = 0, ...rest }: UpdateWork): Promise<void> {
    const overlapping = this.#exchange !== null && this.#profiler === null;
    for (const [i, batch] of batches.entries()) {
      const place = { ...rest, firstRow: firstRow + i * batch.tokens.length };
      if (overlapping && i === batches.length - 1) return await this.#exchangeWhile(batch, place);
      this.microstep(batch, place);
      await turn(); // signals are heard here
    }
    await this.#exchangeWhile();
  }

  /** Sums over ranks, while the last microbatch is computed where there is one. */
  async #exchangeWhile(batch?: DenseBatch, place?: Place & { readonly scale: number }): Promise<void> {
    if (this.#exchange === null) return;
    await this.#profiler?.settled();
    const { program } = this.#microstep(this.options.rows);
    this.#refresh();
    const launched = batch === undefined ? nothing() : program.launch(microstepInputs(program.inputs, batch, place!));
    await this.#exchange.run(launched, ({ complete }) => program.segmentOf(complete));
    const { store } = this.model;
    const loss = new Float32Array(await store.read(LOSS));
    await this.sharing!.communicator.allReduce(loss);
    store.write(LOSS, loss);
  }

  /**
   * Clips, applies AdamW and clears the gradients; skipped where a gradient isn't finite. In f16 skipped updates don't count
   * for AdamW, and `update` is not used. Waits only where ranks share the update, for each other's parameters.
   */
  async update(options: { readonly learningRate: number; readonly update: number }): Promise<void> {
    this.#run(this.updater, updateInputs(this.options, options));
    await this.sharded?.gatherParameters();
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
  #compile({ graph, outputs }: DrawnGraph, boundaries: readonly Tensor[] = []): Promise<Program> {
    const { device, store } = this.model;
    return compile(device, graph, outputs, store, { workspace: this.workspace, boundaries });
  }

  /**
   * Every parameter or moment by its checkpoint key, read one at a time. Where ranks share the moments, all of them must read
   * the same one.
   */
  tensors(kind: Kind): NamedTensor[] {
    const { sharded, model } = this;
    if (sharded === null || kind === "parameter") return model.tensors(kinds[kind]);
    return model.declared.map(({ name, shape }) => ({
      name: model.key(name),
      shape,
      read: async () => (await sharded.read(kindNames[kind], name)).subarray(0, count({ shape, dtype: "f32" })),
    }));
  }

  /** Sets a parameter or moment by its checkpoint key. */
  load(kind: Kind, name: string, data: Float32Array): void {
    const parameter = this.model.declared.find((parameter) => this.model.key(parameter.name) === name);
    if (parameter === undefined) throw new RangeError(`Cannot load ${name}: the model has no such parameter`);
    if (this.sharded !== null && kind !== "parameter") this.sharded.write(kindNames[kind], parameter.name, data);
    else this.model.write(parameter, data, kinds[kind]);
    this.#stale = true;
  }

  /** What the step launches. */
  describe(): string {
    const { parameterCount, device } = this.model;
    const { dispatches, segments } = this.#microstep(this.options.rows).program;
    return `${
      (parameterCount / 1e6).toFixed(2)
    } M parameters on ${device.name}; a microstep has ${dispatches} dispatches ` +
      `in ${segments} ${segments === 1 ? "submit" : "submits"}, an update ${this.updater.dispatches}`;
  }

  [Symbol.dispose](): void {
    this.#profiler?.[Symbol.dispose]();
    this.#evaluate?.[Symbol.dispose]();
    this.#exchange?.[Symbol.dispose]();
    for (const { program } of this.#microsteps.values()) program[Symbol.dispose]();
    this.updater[Symbol.dispose]();
    this.refresher?.[Symbol.dispose]();
    this.workspace[Symbol.dispose]();
  }
}

/** What the layout calls the kinds of moments. */
const kindNames = { expAvg: "exp_avg", expAvgSq: "exp_avg_sq" } as const;

/** A run without a segment. */
function* nothing(): Generator<number> {}
