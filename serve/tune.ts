/** Tunes the kernels that answer requests: runs an engine's programs once while a tuner picks for them. Knows no HTTP. */
import { openDevice } from "../kernels/gpu/device.ts";
import { formatTuning, Tuner } from "../kernels/gpu/tune.ts";
import { cacheFolder } from "../kernels/gpu/tune_cache.ts";
import { defaultSampling } from "../model/generate.ts";
import { loadModel, type LoadOptions } from "../model/load.ts";
import { createEngine } from "./engine.ts";

export interface TuneServingOptions extends LoadOptions {
  /** Time what was timed before again. */
  readonly again: boolean;
  /** What may be spent. */
  readonly seconds: number;
  readonly say: (line: string) => void;
}

/** Tokens of the prompt: more than fit the larger of the engine's buckets at once, so that all of them are used. */
const PROMPT = 200;

/** Streams at once: an engine may have programs for one and for many. */
const STREAMS = [1, 16];

/** Tunes a model folder's decoding and prompts; later engines find the winners. */
export async function tuneServing(folder: string, { again, seconds, say, ...load }: TuneServingOptions): Promise<void> {
  using device = await openDevice();
  using tuner = new Tuner(device, {
    folder: cacheFolder(),
    again,
    seconds,
    onProgress: (progress) => say(formatTuning(progress)),
    note: (line) => say(`note: ${line}`),
  });
  device.chooser = tuner;
  using model = await loadModel(device, folder, { ...load, serving: true });
  await using engine = createEngine(model);
  const length = Math.max(1, Math.min(PROMPT, engine.contextLength - 2));
  const generate = async () => {
    const prompt = Uint32Array.from({ length }, (_, i) => i % engine.vocabSize);
    for await (const _ of engine.generate(prompt, { ...defaultSampling, maxTokens: 2 }));
  };
  for (const streams of STREAMS) await Promise.all(Array.from({ length: streams }, generate));
  say(tuner.summary() ?? "every kernel was tuned before");
}
