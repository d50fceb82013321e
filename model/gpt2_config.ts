/** GPT-2's configuration: read from Hugging Face's config.json with every field checked, and written back. It knows no tensors. */

import { UserError } from "./errors.ts";

/** Shapes, constants and rates of a GPT-2 model, under the names Hugging Face gives them. */
export interface Gpt2Config {
  readonly model_type: "gpt2";
  readonly architectures: readonly string[];
  readonly vocab_size: number;
  /** Longest context. */
  readonly n_positions: number;
  readonly n_embd: number;
  readonly n_layer: number;
  readonly n_head: number;
  /** Width of the MLP; null is 4 · n_embd. */
  readonly n_inner: number | null;
  readonly activation_function: ActivationName;
  readonly layer_norm_epsilon: number;
  /** Standard deviation of new weights. */
  readonly initializer_range: number;
  readonly embd_pdrop: number;
  readonly attn_pdrop: number;
  readonly resid_pdrop: number;
  /** Attention scores are divided by √(head size). */
  readonly scale_attn_weights: boolean;
  readonly tie_word_embeddings: true;
  readonly bos_token_id: number | null;
  readonly eos_token_id: number | null;
}

/** Every name under which Hugging Face files call GELU's tanh form or its exact form. */
const ACTIVATIONS = { gelu_new: "tanh", gelu_pytorch_tanh: "tanh", gelu: "erf" } as const;
export type ActivationName = keyof typeof ACTIVATIONS;

/** Values of fields that a config.json may leave out, as Hugging Face's GPT2Config has them. */
export const gpt2Defaults = {
  model_type: "gpt2",
  architectures: ["GPT2LMHeadModel"],
  n_inner: null,
  activation_function: "gelu_new",
  layer_norm_epsilon: 1e-5,
  initializer_range: 0.02,
  embd_pdrop: 0.1,
  attn_pdrop: 0.1,
  resid_pdrop: 0.1,
  scale_attn_weights: true,
  tie_word_embeddings: true,
  bos_token_id: null,
  eos_token_id: null,
} as const satisfies Partial<Gpt2Config>;

/** Fields that change the arithmetic in ways this model doesn't have; only false is taken. */
const UNSUPPORTED = ["scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention"] as const;

/** What a file that doesn't say means by its first and last token, where its vocabulary reaches so far. */
const GPT2_END_OF_TEXT = 50256;

/** Far past any model, and small enough that a list of its parameters is cheap whatever a file says. */
const MAX_LAYERS = 4096;

/** Which GELU the model computes. */
export function geluForm(config: Gpt2Config): "tanh" | "erf" {
  return ACTIVATIONS[config.activation_function];
}

/** Width of the MLP's hidden layer. */
export function innerSize(config: Gpt2Config): number {
  return config.n_inner ?? 4 * config.n_embd;
}

/** Factor on attention scores. */
export function attentionScale(config: Gpt2Config): number {
  return config.scale_attn_weights ? 1 / Math.sqrt(config.n_embd / config.n_head) : 1;
}

/** Shapes of all parameters by their Hugging Face names, in the order in which the model uses them. */
export function gpt2Parameters(config: Gpt2Config): { readonly name: string; readonly shape: readonly number[] }[] {
  const C = config.n_embd;
  const inner = innerSize(config);
  const norm = (name: string) => [{ name: `${name}.weight`, shape: [C] }, { name: `${name}.bias`, shape: [C] }];
  // Hugging Face's Conv1D keeps its weight as (in, out).
  const linear = (name: string, rows: number, columns: number) => [
    { name: `${name}.weight`, shape: [rows, columns] },
    { name: `${name}.bias`, shape: [columns] },
  ];
  const block = (h: string) => [
    ...norm(`${h}.ln_1`),
    ...linear(`${h}.attn.c_attn`, C, 3 * C),
    ...linear(`${h}.attn.c_proj`, C, C),
    ...norm(`${h}.ln_2`),
    ...linear(`${h}.mlp.c_fc`, C, inner),
    ...linear(`${h}.mlp.c_proj`, inner, C),
  ];
  return [
    { name: "transformer.wte.weight", shape: [config.vocab_size, C] },
    { name: "transformer.wpe.weight", shape: [config.n_positions, C] },
    ...Array.from({ length: config.n_layer }, (_, layer) => block(`transformer.h.${layer}`)).flat(),
    ...norm("transformer.ln_f"),
  ];
}

/**
 * Checks the parsed content of a config.json; `file` is what errors call it.
 * Throws UserError naming file and field where one is missing, malformed, or asks for what this GPT-2 doesn't compute.
 */
export function parseGpt2Config(json: unknown, file: string): Gpt2Config {
  const fields = new Fields(json, file);
  fields.oneOf("model_type", ["gpt2"]);
  for (const name of UNSUPPORTED) if (fields.boolean(name, false)) fields.refuse(name, "true is not supported");
  if (!fields.boolean("tie_word_embeddings", true)) {
    fields.refuse("tie_word_embeddings", "false is not supported: GPT-2's head is its embedding table");
  }
  const vocabSize = fields.size("vocab_size");
  const endOfText = vocabSize > GPT2_END_OF_TEXT ? GPT2_END_OF_TEXT : null;
  const config: Gpt2Config = {
    model_type: "gpt2",
    architectures: fields.strings("architectures", gpt2Defaults.architectures),
    vocab_size: vocabSize,
    n_positions: fields.size("n_positions"),
    n_embd: fields.size("n_embd"),
    n_layer: fields.size("n_layer", MAX_LAYERS),
    n_head: fields.size("n_head"),
    n_inner: fields.has("n_inner") ? fields.size("n_inner") : null,
    activation_function: fields.oneOf(
      "activation_function",
      Object.keys(ACTIVATIONS) as ActivationName[],
      gpt2Defaults.activation_function,
    ),
    layer_norm_epsilon: fields.number("layer_norm_epsilon", gpt2Defaults.layer_norm_epsilon, 0, 1),
    initializer_range: fields.number("initializer_range", gpt2Defaults.initializer_range, 0, Infinity),
    embd_pdrop: fields.number("embd_pdrop", gpt2Defaults.embd_pdrop, 0, 1),
    attn_pdrop: fields.number("attn_pdrop", gpt2Defaults.attn_pdrop, 0, 1),
    resid_pdrop: fields.number("resid_pdrop", gpt2Defaults.resid_pdrop, 0, 1),
    scale_attn_weights: fields.boolean("scale_attn_weights", true),
    tie_word_embeddings: true,
    bos_token_id: fields.token("bos_token_id", endOfText),
    eos_token_id: fields.token("eos_token_id", endOfText),
  };
  if (config.n_embd % config.n_head !== 0) {
    fields.refuse("n_embd", `${config.n_embd} is no multiple of n_head ${config.n_head}`);
  }
  return config;
}

/** Content of a config.json that transformers loads. */
export function formatGpt2Config(config: Gpt2Config): Record<string, unknown> {
  return { ...config, n_ctx: config.n_positions, torch_dtype: "float32", use_cache: true };
}

/** Typed reading of a JSON object's fields. Every refusal names the file and the field. */
class Fields {
  readonly #values: Readonly<Record<string, unknown>>;

  constructor(json: unknown, readonly file: string) {
    if (typeof json !== "object" || json === null || Array.isArray(json)) {
      throw new UserError(`Cannot use ${file}: it holds no JSON object`);
    }
    this.#values = json as Record<string, unknown>;
  }

  refuse(name: string, reason: string): never {
    throw new UserError(`Cannot use ${this.file}: ${name}: ${reason}`);
  }

  /** Null counts as absent, as in Hugging Face's files. */
  has(name: string): boolean {
    return Object.hasOwn(this.#values, name) && this.#values[name] !== null;
  }

  #get(name: string): unknown {
    return this.has(name) ? this.#values[name] : this.refuse(name, "the field is missing");
  }

  #wrong(name: string, wanted: string): never {
    return this.refuse(name, `found ${JSON.stringify(this.#values[name])}, wanted ${wanted}`);
  }

  size(name: string, most = 2 ** 31 - 1): number {
    const value = this.#get(name);
    if (typeof value !== "number" || !Number.isSafeInteger(value) || value < 1 || value > most) {
      this.#wrong(name, `an integer from 1 to ${most}`);
    }
    return value;
  }

  /** A token id: an integer from 0, possibly past the vocabulary (as in some published files), or none. */
  token(name: string, fallback: number | null): number | null {
    if (!Object.hasOwn(this.#values, name)) return fallback;
    if (!this.has(name)) return null;
    const value = this.#get(name);
    if (typeof value !== "number" || !Number.isSafeInteger(value) || value < 0) this.#wrong(name, "a token id");
    return value;
  }

  /** A number from `least` up to but without `limit`. */
  number(name: string, fallback: number, least: number, limit: number): number {
    if (!this.has(name)) return fallback;
    const value = this.#get(name);
    if (typeof value !== "number" || !(value >= least && value < limit)) {
      this.#wrong(name, limit === Infinity ? `a number from ${least}` : `a number from ${least} to below ${limit}`);
    }
    return value;
  }

  boolean(name: string, fallback: boolean): boolean {
    if (!this.has(name)) return fallback;
    const value = this.#get(name);
    return typeof value === "boolean" ? value : this.#wrong(name, "true or false");
  }

  strings(name: string, fallback: readonly string[]): readonly string[] {
    if (!this.has(name)) return fallback;
    const value = this.#get(name);
    if (!Array.isArray(value) || value.some((entry) => typeof entry !== "string")) this.#wrong(name, "a list of names");
    return value as string[];
  }

  oneOf<const T extends string>(name: string, choices: readonly T[], fallback?: T): T {
    if (fallback !== undefined && !this.has(name)) return fallback;
    const value = this.#get(name);
    const found = choices.find((choice) => choice === value);
    return found ?? this.#wrong(name, choices.map((choice) => JSON.stringify(choice)).join(" or "));
  }
}
