/** Named settings: whole runs that are known to make sense. It knows no defaults and no flags. */
import type { Config } from "./config.ts";

export const presetNames = ["tiny", "small", "gpt2", "gpt2-medium", "fineweb-edu"] as const;
export type PresetName = typeof presetNames[number];
type Preset = Partial<Omit<Config, "preset">>;

/** OpenAI's GPT-2 of 124M parameters (Radford et al. 2019), trained as is usual today: half a million tokens an update. */
const gpt2: Preset = {
  tokenizer: "gpt2",
  vocabularySize: 50257,
  context: 1024,
  nLayer: 12,
  nHead: 12,
  nEmbd: 768,
  dropout: 0,
  microBatch: 4,
  batchTokens: 524_288,
  epochs: 1,
  learningRate: 6e-4,
  minLearningRate: 6e-5,
  warmup: 700,
  beta2: 0.95,
  weightDecay: 0.1,
  evalEvery: 250,
  sampleEvery: 250,
  checkpointEvery: 250,
};

export const presets: Readonly<Record<PresetName, Preset>> = {
  /** Minutes on a CPU: what training with no flags does. */
  tiny: {
    vocabularySize: 4096,
    context: 128,
    nLayer: 4,
    nHead: 4,
    nEmbd: 128,
    initializerRange: 0.05, // 0.02 · √(768 / 128): a narrow model with GPT-2's own learns nothing but frequencies for long
    microBatch: 8,
    steps: 1000,
    learningRate: 4e-3,
    minLearningRate: 2e-4,
    warmup: 50,
    evalEvery: 100,
    samplePrompt: "The people of the United States",
  },
  /** About 10M parameters: an hour or less on a small GPU. */
  small: {
    vocabularySize: 4096,
    context: 256,
    nLayer: 5,
    nHead: 6,
    nEmbd: 384,
    dropout: 0.1,
    microBatch: 16,
    batchTokens: 16_384,
    steps: 2000,
    learningRate: 1e-3,
    minLearningRate: 1e-4,
    warmup: 100,
    evalEvery: 100,
    sampleEvery: 200,
    checkpointEvery: 200,
    samplePrompt: "The people of the United States",
  },
  gpt2,
  "gpt2-medium": {
    ...gpt2,
    nLayer: 24,
    nHead: 16,
    nEmbd: 1024,
    microBatch: 2,
    learningRate: 3e-4,
    minLearningRate: 3e-5,
  },
  /** The published recipe for GPT-2 124M on FineWeb-Edu, mixed precision included. */
  "fineweb-edu": {
    ...gpt2,
    dropout: 0.1,
    epochs: 5,
    learningRate: 1e-3,
    minLearningRate: 0,
    warmup: 500,
    schedule: "cosine",
    beta1: 0.9,
    beta2: 0.98,
    eps: 1e-9,
    weightDecay: 0.01,
    clip: 1,
    precision: "bf16",
  },
};
