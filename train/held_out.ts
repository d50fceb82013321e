/** The held-out loss: always over the same rows, so that two measurements compare. */
import { setImmediate as turn } from "node:timers/promises";
import type { Config } from "./config.ts";
import type { Learner } from "./learner.ts";
import { type Loader, openLoader } from "./loader.ts";

export interface HeldOut extends Disposable {
  /** Mean loss over the targets, in nats. */
  measure(learner: Pick<Learner, "evaluate">): Promise<number>;
}

/**
 * Rows of the validation split: all of them in order, or a seeded choice of as many as `evalBatches` microbatches have.
 *
 * @param rowsPerBatch rows to compute at once; the choice doesn't hang on it.
 */
export async function openHeldOut(
  data: string,
  config: Config,
  rowsPerBatch: number = config.microBatch,
): Promise<HeldOut> {
  const { context, microBatch, documents, seed, evalBatches } = config;
  const open = (order: "shuffled" | "sequential"): Promise<Loader> => {
    return openLoader({ data, split: "validation", context, rowsPerBatch, seed, documents, order });
  };
  let loader = await open("sequential");
  const all = loader.batchesPerEpoch;
  const count = evalBatches === 0 ? all : Math.min(all, evalBatches * microBatch / rowsPerBatch);
  if (count < all) {
    loader[Symbol.dispose]();
    loader = await open("shuffled");
  }
  return {
    async measure(learner) {
      let [loss, targets] = [0, 0];
      for (let index = 0; index < count; index++) {
        const part = await learner.evaluate(await loader.batch(index));
        loss += part.loss;
        targets += part.targets;
        await turn();
      }
      return loss / targets;
    },
    [Symbol.dispose]: () => loader[Symbol.dispose](),
  };
}
