/** AdamW over a loaded model, a step at a time, for use as a library. It knows no data and no schedule. */
import { denseBatch } from "../model/batch.ts";
import type { Model } from "../model/model.ts";
import type { Precision } from "./precision.ts";
import { checkTrainable, compileStep, type Report, type Step } from "./step.ts";

export interface AdamWSettings {
  /** Learning rate; may be set anew between steps through `optimizer.lr`. */
  readonly lr: number;
  readonly betas?: readonly [number, number];
  readonly eps?: number;
  /** Goes to tensors of two and more dimensions. */
  readonly weightDecay?: number;
  /** Largest norm of all gradients together; 0 clips nothing. */
  readonly clip?: number;
  /** What products with weights compute in; weights, moments and gradients stay f32. Default: f32. */
  readonly precision?: Precision;
  /** Seed of the dropout that the model's configuration asks for. */
  readonly seed?: number;
}

/**
 * AdamW (Loshchilov and Hutter 2019) with moments beside the model's parameters: one optimizer a model. Without settings of
 * their own, betas are 0.9 and 0.999, eps 1e-8, weightDecay 0.01, clip 0, precision f32 and seed 0.
 *
 * @example
 * ```ts
 * import { createAdamW, loadModel, openDevice } from "../mod.ts";
 *
 * using device = await openDevice();
 * using model = await loadModel(device, "tests/fixtures/gpt2-tiny");
 * using optimizer = createAdamW(model, { lr: 1e-3, betas: [0.9, 0.98], eps: 1e-9, weightDecay: 0.01, clip: 1 });
 * const { loss, gradNorm } = await optimizer.step([[4, 32, 31]], [[32, 31, -100]]);
 * if (!(loss > 0 && gradNorm > 0)) throw new Error("nothing was learned");
 * ```
 */
export function createAdamW(model: Model, settings: AdamWSettings): AdamW {
  return new AdamW(model, settings);
}

/** Moments and programs beside a model; made by `createAdamW`. Disposing of it leaves the model as it is. */
export class AdamW implements Disposable {
  lr: number;
  #step: Promise<Step> | null = null;
  #opened: Step | null = null;
  #update = 0;

  constructor(readonly model: Model, readonly settings: AdamWSettings) {
    checkTrainable(model);
    this.lr = settings.lr;
  }

  /**
   * Forward with the config's dropout, backward, clipping and one update.
   *
   * @param tokens (B, T) ids, each row one document.
   * @param targets (B, T) ids, or -100 where there is none.
   * @returns the mean loss over the targets before the update, the gradients' norm before clipping, in f16 the loss scale.
   * @throws RangeError for shapes that differ, a T past the context or an id ≥ V.
   */
  async step(
    tokens: readonly (readonly number[])[],
    targets: readonly (readonly number[])[],
  ): Promise<Report> {
    const batch = denseBatch(this.model.config, tokens, targets);
    const step = this.#opened = await (this.#step ??= this.#open(batch.tokens.length));
    await step.prepare(batch.tokens.length);
    const update = ++this.#update;
    const { seed = 0 } = this.settings;
    step.microstep(batch, { scale: 1 / Math.max(1, batch.validTargets), seed, update, firstRow: 0 });
    await step.update({ learningRate: this.lr, update });
    return await step.report();
  }

  #open(rows: number): Promise<Step> {
    const { betas: [beta1, beta2] = [0.9, 0.999], eps = 1e-8, weightDecay = 0.01, clip = 0, precision } = this.settings;
    const optimizer = { beta1, beta2, eps, weightDecay, clip };
    return compileStep(this.model, { rows, optimizer, dropout: true, precision });
  }

  [Symbol.dispose](): void {
    this.#opened?.[Symbol.dispose]();
  }
}
