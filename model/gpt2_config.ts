/** GPT-2's configuration: read from Hugging Face's config.json with every field checked, and written back. It knows no tensors. */

import { Fields } from "./json_fields.ts";

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
 * @throws UserError naming file and field where one is missing, malformed, or asks for what this GPT-2 doesn't compute.
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
