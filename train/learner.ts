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
import type { Kind, Place, Report } from "./step.ts";

/** A model, its optimizer, and the programs that train it. */
export interface Learner extends AsyncDisposable {
  readonly config: Gpt2Config;
  readonly device: string;
  readonly parameters: number;
  /** Which kernels it computes with. */
  readonly kernels: Recorded;
  /** Forward and backward of one microbatch; gradients are summed. `scale` is 1 / (targets of the whole update). */
  microstep(batch: DenseBatch, options: Place & { readonly scale: number }): void;
  /** Clips, steps and clears the gradients. `update` counts from 1. */
  update(options: { readonly learningRate: number; readonly update: number }): void;
  /** Loss, gradient norm and loss scale of the last update. Waits for everything begun before. */
  report(): Promise<Report>;
  /** Sum of the losses over a batch's valid targets. */
  evaluate(batch: DenseBatch): Promise<{ readonly loss: number; readonly targets: number }>;
  /** Generates with the weights as they are. */
  engine(): Engine;
  tensors(kind: Kind): readonly NamedTensor[];
  load(kind: Kind, name: string, data: Float32Array): void;
  /** Measures microsteps and updates from now on, kernel by kernel. */
  startProfile(): Promise<void>;
  /** What was measured, to print; `whole` is what the same work took unmeasured, in milliseconds. */
  endProfile(whole: number): Promise<string>;
  /** Where the loss scale stands; null where the precision has none. */
  lossScaling(): Promise<LossScaling | null>;
  loadLossScaling(scaling: LossScaling): void;
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
  readonly console: Pick<Console, "line" | "status">;
}

export type OpenLearner = (options: LearnerOptions) => Promise<Learner>;
