/**
 * What the training loop asks of a model in training. The loop knows only this, so that it can be tested with a learner of a
 * few lines; it doesn't say where the numbers live.
 */
import type { Recorded } from "../kernels/gpu/choices.ts";
import type { Engine } from "../model/generate.ts";
import type { Gpt2Config } from "../model/gpt2_config.ts";
import type { DenseBatch } from "../model/batch.ts";
import type { NamedTensor } from "../model/model.ts";
import type { Config } from "./config.ts";
import type { Console } from "./console.ts";
import type { LossScaling } from "./precision.ts";
import type { Kind, Report } from "./step.ts";

/** What an update learns from, or a rank's share of it. */
export interface UpdateWork {
  /** Microbatches of one size, in the order of their rows within the update. */
  readonly batches: readonly DenseBatch[];
  /** Index of the first batch's first row (a token) within the update. Default: 0. */
  readonly firstRow?: number;
  /** 1 / (targets of the whole update). */
  readonly scale: number;
  readonly seed: number;
  /** Number of the update, counted from 1. */
  readonly update: number;
}

/** A model, its optimizer, and the programs that train it. */
export interface Learner extends AsyncDisposable {
  readonly config: Gpt2Config;
  readonly device: string;
  readonly parameters: number;
  /** Bytes that it holds on the device: of several ranks, on rank 0's. */
  deviceBytes(): number;
  /** Which kernels it computes with. */
  readonly kernels: Recorded;
  /** Speeds of the ranks, by which they share out microbatches; undefined where one does all. */
  readonly speeds?: readonly number[];
  /** Forward and backward of all microbatches of an update; gradients are summed. May return before the GPU is done. */
  accumulate(work: UpdateWork): Promise<void>;
  /** Clips, steps and clears the gradients. `update` counts from 1. */
  update(options: { readonly learningRate: number; readonly update: number }): Promise<void>;
  /** Loss, gradient norm and loss scale of the last update. Waits for everything begun before. */
  report(): Promise<Report>;
  /** Sum of the losses over a batch's valid targets. */
  evaluate(batch: DenseBatch): Promise<{ readonly loss: number; readonly targets: number }>;
  /** Generates with the weights as they are. */
  engine(): Engine;
  tensors(kind: Kind): readonly NamedTensor[];
  load(kind: Kind, name: string, data: Float32Array): Promise<void>;
  /** Measures microsteps and updates from now on, kernel by kernel. */
  startProfile(): Promise<void>;
  /** What was measured, to print; `whole` is what the same work took unmeasured, in milliseconds. */
  endProfile(whole: number): Promise<string>;
  /** @throws Error where ranks hold weights that differ in a bit. */
  agree(): Promise<void>;
  /** Where the loss scale stands; null where the precision has none. */
  lossScaling(): Promise<LossScaling | null>;
  loadLossScaling(scaling: LossScaling): Promise<void>;
  /** Sizes and memory, to print. */
  describe(): string;
}

export interface LearnerOptions {
  readonly config: Config;
  readonly model: Gpt2Config;
  /** False where all weights are loaded next: they may be anything. */
  readonly initialize: boolean;
  /** Kernels to use; undefined where they are to be chosen. */
  readonly kernels?: Recorded;
  /** The device that `kernels` are for; another one chooses its own. Default: whichever is opened. */
  readonly kernelsOf?: string;
  /** Speeds of the ranks as they were; undefined where they are to be measured or taken as equal. */
  readonly speeds?: readonly number[];
  readonly console: Pick<Console, "line" | "status">;
}

export type OpenLearner = (options: LearnerOptions) => Promise<Learner>;
