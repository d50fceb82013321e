/**
 * A learner of a few lines that really learns: the logits of the next token are wte[token] · W · wteᵀ, everything else of a
 * one-block GPT-2 is there and idle. AdamW in f32; dropout by seed, update and row, so that a wrong resume shows.
 */
import { setImmediate as turn } from "node:timers/promises";
import { gpt2Parameters } from "../../model/gpt2_config.ts";
import type { Engine, Generated } from "../../model/generate.ts";
import type { Communicator } from "../../train/communicator.ts";
import type { LearnerOptions, OpenLearner } from "../../train/learner.ts";
import type { OpenRankLearner, RankLearner } from "../../train/parallel.ts";
import { generator, hash32 } from "../../train/shuffle.ts";

const TABLE = "transformer.wte.weight";
const MATRIX = "transformer.h.0.attn.c_proj.weight";

interface Slot {
  readonly shape: readonly number[];
  readonly data: Record<"parameter" | "gradient" | "expAvg" | "expAvgSq", Float32Array>;
}

/** Faults to try the loop with. */
export interface Faults {
  /** Microbatches a second, as it says. */
  readonly speed?: number;
  /** Update whose loss is NaN. */
  readonly nan?: number;
  /** With whom it sums its gradients. */
  readonly communicator?: Communicator;
  /** Called at each microstep. */
  readonly onMicrostep?: (update: number) => void;
}

export const openFakeLearner: OpenLearner = (options) => fakeLearner()(options);

export function fakeLearner(faults: Faults = {}): OpenRankLearner {
  return (options) => Promise.resolve(createFake(options, faults));
}

function createFake({ config, model, initialize, kernels }: LearnerOptions, faults: Faults): RankLearner {
  const slots = new Map(
    gpt2Parameters(model).map(({ name, shape }, stream): [string, Slot] => {
      const size = shape.reduce((a, b) => a * b, 1);
      const random = generator(config.seed, stream);
      const empty = () => new Float32Array(size);
      const parameter = empty().map(() => initialize ? (random() / 2 ** 32 - 0.5) * 0.4 : NaN);
      return [name, { shape, data: { parameter, gradient: empty(), expAvg: empty(), expAvgSq: empty() } }];
    }),
  );
  const C = model.n_embd;
  const V = model.vocab_size;
  const table = slots.get(TABLE)!.data;
  const matrix = slots.get(MATRIX)!.data;
  let sum = 0;
  let last = { loss: NaN, gradNorm: NaN };

  /** Logits of the token after `token`; `kept` masks the hidden values. */
  function forward(token: number, kept: (c: number) => number): { x: Float64Array; logits: Float64Array } {
    const x = new Float64Array(C);
    for (let c = 0; c < C; c++) {
      for (let k = 0; k < C; k++) x[c] += table.parameter[token * C + k] * matrix.parameter[k * C + c];
      x[c] *= kept(c);
    }
    const logits = new Float64Array(V);
    for (let v = 0; v < V; v++) for (let c = 0; c < C; c++) logits[v] += x[c] * table.parameter[v * C + c];
    return { x, logits };
  }

  function lossOf(logits: Float64Array, target: number): { loss: number; probabilities: Float64Array } {
    const top = logits.reduce((a, b) => Math.max(a, b), -Infinity);
    const total = logits.reduce((sum, logit) => sum + Math.exp(logit - top), 0);
    const probabilities = logits.map((logit) => Math.exp(logit - top) / total);
    return { loss: top + Math.log(total) - logits[target], probabilities };
  }

  function backward(token: number, target: number, scale: number, kept: (c: number) => number): number {
    const { x, logits } = forward(token, kept);
    const { loss, probabilities } = lossOf(logits, target);
    const dx = new Float64Array(C);
    for (let v = 0; v < V; v++) {
      const d = (probabilities[v] - (v === target ? 1 : 0)) * scale;
      for (let c = 0; c < C; c++) {
        dx[c] += d * table.parameter[v * C + c];
        table.gradient[v * C + c] += d * x[c];
      }
    }
    for (let c = 0; c < C; c++) {
      for (let k = 0; k < C; k++) {
        matrix.gradient[k * C + c] += dx[c] * kept(c) * table.parameter[token * C + k];
        table.gradient[token * C + k] += dx[c] * kept(c) * matrix.parameter[k * C + c];
      }
    }
    return loss * scale;
  }

  function adamw(learningRate: number, update: number): void {
    const { beta1, beta2, eps, weightDecay, clip } = config;
    const norm = Math.sqrt(
      table.gradient.reduce((s, g) => s + g * g, 0) + matrix.gradient.reduce((s, g) => s + g * g, 0),
    );
    const factor = clip > 0 ? Math.min(1, clip / (norm + 1e-6)) : 1;
    for (const { shape, data } of slots.values()) {
      for (let i = 0; i < data.parameter.length; i++) {
        const g = data.gradient[i] * factor;
        data.expAvg[i] = beta1 * data.expAvg[i] + (1 - beta1) * g;
        data.expAvgSq[i] = beta2 * data.expAvgSq[i] + (1 - beta2) * g * g;
        if (shape.length > 1) data.parameter[i] *= 1 - learningRate * weightDecay;
        const step = data.expAvg[i] / (1 - beta1 ** update) /
          (Math.sqrt(data.expAvgSq[i] / (1 - beta2 ** update)) + eps);
        data.parameter[i] -= learningRate * step;
      }
      data.gradient.fill(0);
    }
    last = { loss: update === faults.nan ? NaN : sum, gradNorm: norm };
    sum = 0;
  }

  const engine: Engine = {
    contextLength: model.n_positions,
    vocabSize: V,
    async *generate(prompt, { maxTokens, seed }): AsyncIterable<Generated> {
      let token = prompt[prompt.length - 1];
      const random = generator(seed, 0);
      for (let made = 1; made <= maxTokens; made++) {
        const { probabilities } = lossOf(forward(token, () => 1).logits, 0);
        let left = random() / 2 ** 32;
        token = Math.max(0, probabilities.findIndex((p) => (left -= p) < 0));
        yield await Promise.resolve({
          token,
          logprob: 0,
          top: [],
          finish: made === maxTokens ? "length" as const : undefined,
        });
      }
    },
    score: () => Promise.reject(new Error("not needed here")),
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };

  return {
    config: model,
    device: "fake",
    deviceBytes: () => 1e6,
    startProfile: () => Promise.resolve(),
    endProfile: () => Promise.resolve("profile of a fake"),
    kernels: kernels ?? { fake: `chosen for seed ${config.seed}` },
    parameters: [...slots.values()].reduce((total, { data }) => total + data.parameter.length, 0),
    async accumulate({ batches, firstRow = 0, scale, seed, update }) {
      for (const { tokens, targets } of batches) {
        faults.onMicrostep?.(update);
        targets.forEach((target, row) => {
          if (target < 0) return;
          const dropped = (c: number) => hash32(seed ^ update, firstRow + row, c) < config.dropout * 2 ** 32;
          sum += backward(tokens[row], target, scale, (c) => dropped(c) ? 0 : 1 / (1 - config.dropout));
        });
        firstRow += tokens.length;
        await turn();
      }
      for (const { data } of slots.values()) await faults.communicator?.allReduce(data.gradient);
      const loss = Float32Array.of(sum);
      await faults.communicator?.allReduce(loss);
      sum = loss[0];
    },
    agree: () => Promise.resolve(),
    sharded: false,
    speed: () => Promise.resolve(faults.speed ?? 1),
    update: ({ learningRate, update }) => Promise.resolve(adamw(learningRate, update)),
    report: () => Promise.resolve(last),
    evaluate({ tokens, targets, validTargets }) {
      let loss = 0;
      targets.forEach((target, row) => {
        if (target >= 0) loss += lossOf(forward(tokens[row], () => 1).logits, target).loss;
      });
      return Promise.resolve({ loss, targets: validTargets });
    },
    engine: () => engine,
    tensors: (kind) =>
      [...slots].map(([name, { shape, data }]) => ({ name, shape, read: () => Promise.resolve(data[kind]) })),
    load: (kind, name, data) => Promise.resolve(slots.get(name)!.data[kind].set(data)),
    lossScaling: () => Promise.resolve(null),
    loadLossScaling: () => Promise.resolve(),
    describe: () => "a fake learner",
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
}
