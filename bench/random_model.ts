/** GPT-2 124M's shape with random weights, for benches that ask how fast and not what. */
import type { Device } from "../kernels/gpu/device.ts";
import { count } from "../kernels/gpu/graph.ts";
import { type Gpt2Config, gpt2Defaults } from "../model/gpt2_config.ts";
import { Model } from "../model/model.ts";
import type { WeightFormat } from "../model/scope.ts";

export const GPT2: Gpt2Config = {
  ...gpt2Defaults,
  vocab_size: 50257,
  n_positions: 1024,
  n_embd: 768,
  n_head: 12,
  n_layer: 12,
};

/** Weights of about the usual size from a generator that costs no time: normal numbers would take longer than the bench. */
export function randomModel(device: Device, config: Gpt2Config, weights: WeightFormat): Model {
  const model = new Model(device, config, { weights, serving: true });
  let state = 1;
  for (const parameter of model.declared) {
    const values = new Float32Array(count({ shape: parameter.shape, dtype: "f32" }));
    for (let i = 0; i < values.length; i++) {
      state = (Math.imul(state, 1664525) + 1013904223) | 0;
      values[i] = state * 2e-11;
    }
    model.write(parameter, values);
  }
  return model;
}
