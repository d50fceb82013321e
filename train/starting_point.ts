/** Which model a run trains and where its weights come from: new, another model's folder, or the run's own checkpoint. */
import { readFolder } from "../model/checkpoint.ts";
import { UserError } from "../model/errors.ts";
import { type Gpt2Config, gpt2Defaults } from "../model/gpt2_config.ts";
import type { Config } from "./config.ts";
import type { Learner } from "./learner.ts";

/** What the data asks of a model. */
export interface Vocabulary {
  readonly vocabSize: number;
  readonly endOfText: number;
}

export interface StartingPoint {
  readonly model: Gpt2Config;
  /** Folder to load the weights from; undefined for new ones. */
  readonly weights: string | undefined;
}

/** @throws UserError naming every point in which the folder of --init-from doesn't fit settings and data. */
export async function startingPoint(config: Config, data: Vocabulary, checkpoint?: string): Promise<StartingPoint> {
  if (checkpoint !== undefined) {
    using files = await readFolder(checkpoint);
    return { model: files.config, weights: checkpoint };
  }
  if (config.initFrom === "") return { model: newModel(config, data), weights: undefined };
  using files = await readFolder(config.initFrom);
  checkFit(config, data, files.config);
  return { model: { ...files.config, ...rates(config) }, weights: config.initFrom };
}

/** Loads all parameters of a Hugging Face folder. */
export async function loadWeights(learner: Learner, folder: string): Promise<void> {
  using files = await readFolder(folder);
  for (const { name } of learner.tensors("parameter")) await learner.load("parameter", name, await files.readF32(name));
}

function newModel(config: Config, { vocabSize, endOfText }: Vocabulary): Gpt2Config {
  return {
    ...gpt2Defaults,
    vocab_size: vocabSize,
    n_positions: config.context,
    n_layer: config.nLayer,
    n_head: config.nHead,
    n_embd: config.nEmbd,
    initializer_range: config.initializerRange,
    ...rates(config),
    bos_token_id: endOfText,
    eos_token_id: endOfText,
  };
}

function rates({ dropout }: Config) {
  return { embd_pdrop: dropout, attn_pdrop: dropout, resid_pdrop: dropout };
}

function checkFit(config: Config, { vocabSize }: Vocabulary, found: Gpt2Config): void {
  const wanted = [
    ["n_layer", found.n_layer, "--n-layer", config.nLayer],
    ["n_head", found.n_head, "--n-head", config.nHead],
    ["n_embd", found.n_embd, "--n-embd", config.nEmbd],
    ["vocab_size", found.vocab_size, "the data's vocabulary", vocabSize],
  ] as const;
  const faults = wanted.filter(([, has, , wants]) => has !== wants)
    .map(([name, has, words, wants]) => `its ${name} is ${has}, ${words} is ${wants}`);
  if (found.n_positions < config.context) {
    faults.push(`its context is ${found.n_positions}, --context is ${config.context}`);
  }
  if (faults.length > 0) throw new UserError(`Cannot start from ${config.initFrom}: ${faults.join("; ")}`, 2);
}
