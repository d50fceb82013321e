/**
 * wgpt: train GPT-class language models and serve them, from TypeScript, on any GPU that WebGPU reaches.
 *
 * @example
 * ```ts
 * import { loadModel, openDevice } from "./mod.ts";
 *
 * using device = await openDevice();
 * using model = await loadModel(device, "tests/fixtures/gpt2-tiny"); // any Hugging Face GPT-2 folder
 * const logits = await model.logits([[4, 32, 31]]); // (1, 3, V)
 * if (logits.length !== 3 * model.config.vocab_size) throw new Error("logits of another shape");
 * ```
 * @module
 */
export { Device, type DeviceOptions, openDevice } from "./kernels/gpu/device.ts";
export { type RawTensor, readSafetensors, writeSafetensors } from "./model/safetensors.ts";
export {
  defaultSampling,
  type Engine,
  type EngineStats,
  type Generated,
  type Sampling,
  type TokenLogprob,
} from "./model/generate.ts";
export type { Gpt2Config } from "./model/gpt2_config.ts";
export { createModel, loadModel, type LoadOptions } from "./model/load.ts";
export type { Model } from "./model/model.ts";
export { loadTokenizer, type Tokenizer, trainTokenizer, type TrainTokenizerOptions } from "./model/tokenizer.ts";
export { UserError } from "./model/errors.ts";
export { type AdamW, type AdamWSettings, createAdamW } from "./train/optimizer.ts";
export { type CachedEngine, createEngine, type EngineOptions, generate, type Readback } from "./serve/engine.ts";
export { type App, type AppOptions, createApp, type ModelOption } from "./serve/app.ts";
export type { Models, ModelSource } from "./serve/models.ts";
export type { ServedModel } from "./serve/job.ts";
