/** How long a training step takes: forward, backward and AdamW on random weights and tokens. It knows no peer. */
import { openDevice } from "../kernels/gpu/device.ts";
import { denseBatch } from "../model/batch.ts";
import { type Gpt2Config, gpt2Defaults } from "../model/gpt2_config.ts";
import { createModel } from "../model/model.ts";
import { compileStep } from "../train/step.ts";
import type { Bench } from "./main.ts";

interface Shape {
  readonly name: string;
  readonly layers: number;
  readonly width: number;
  readonly heads: number;
  readonly context: number;
  readonly vocabulary: number;
  readonly rows: number;
}

const SHAPES: readonly Shape[] = [
  { name: "tiny", layers: 4, width: 128, heads: 4, context: 128, vocabulary: 4096, rows: 8 },
  { name: "mini", layers: 4, width: 256, heads: 4, context: 256, vocabulary: 8192, rows: 8 },
  { name: "mini-v2048", layers: 4, width: 256, heads: 4, context: 256, vocabulary: 2048, rows: 4 },
];
const REPEATS = 5;
const OPTIMIZER = { beta1: 0.9, beta2: 0.99, eps: 1e-8, weightDecay: 0.1, clip: 1 };

/** Multiplications and additions of a step: three times the forward pass's, causal attention counted by its half. */
function flopsOf({ layers: L, width: C, context: T, vocabulary: V, rows }: Shape): number {
  return 6 * rows * T * (L * (12 * C * C + C * T) + V * C);
}

export async function benchStep(): Promise<Bench> {
  using device = await openDevice();
  const results: Bench["results"][number][] = [];
  for (const shape of SHAPES) results.push(await measure(device, shape));
  return { name: "step", adapter: device.name, config: { repeats: REPEATS, dtype: "f32" }, results };
}

async function measure(
  device: Awaited<ReturnType<typeof openDevice>>,
  shape: Shape,
): Promise<Bench["results"][number]> {
  const { context, vocabulary, rows } = shape;
  const config: Gpt2Config = {
    ...gpt2Defaults,
    vocab_size: vocabulary,
    n_positions: context,
    n_embd: shape.width,
    n_head: shape.heads,
    n_layer: shape.layers,
  };
  const before = device.bytes;
  using model = createModel(device, config, { seed: 1 });
  using step = await compileStep(model, { rows: rows * context, optimizer: OPTIMIZER, dropout: false });
  const tokens = (shift: number) =>
    Array.from({ length: rows }, (_, row) => {
      return Array.from({ length: context }, (_, i) =>
        (Math.imul(row * context + i + shift, 2654435761) >>> 8) % vocabulary);
    });
  const batch = denseBatch(config, tokens(0), tokens(1));
  const repeats_ms: number[] = [];
  for (let update = 1; update <= REPEATS + 1; update++) {
    const start = performance.now();
    step.microstep(batch, { scale: 1 / batch.validTargets, seed: 0, update, firstRow: 0 });
    step.update({ learningRate: 1e-3, update });
    await step.report();
    if (update > 1) repeats_ms.push(performance.now() - start); // the first one compiles shaders
  }
  const median_ms = repeats_ms.toSorted((a, b) => a - b)[REPEATS >> 1];
  return {
    case: shape.name,
    repeats_ms,
    median_ms,
    tokens_per_second: rows * context / median_ms * 1000,
    gflops: flopsOf(shape) / median_ms / 1e6,
    peak_device_bytes: device.bytes - before,
  };
}
