/** generation_config.json: what a model's authors recommend for sampling. It knows no sampler. */

import { Fields } from "./json_fields.ts";

/** Recommendations, under the names Hugging Face gives them; undefined where the file says nothing. */
export interface GenerationConfig {
  readonly bos_token_id: number | null;
  /** Tokens that end a text; the file may name one or several. */
  readonly eos_token_id: readonly number[];
  /** False asks for greedy decoding. */
  readonly do_sample?: boolean;
  readonly temperature?: number;
  readonly top_p?: number;
  readonly top_k?: number;
  readonly min_p?: number;
  readonly repetition_penalty?: number;
  readonly max_new_tokens?: number;
}

/**
 * Checks the parsed content of a generation_config.json; `file` is what errors call it. Fields that this project has no use
 * for are passed over. Throws UserError naming file and field where a known one is malformed.
 */
export function parseGenerationConfig(json: unknown, file: string): GenerationConfig {
  const fields = new Fields(json, file);
  const optional = <T>(name: string, read: () => T) => fields.has(name) ? { [name]: read() } : {};
  return {
    bos_token_id: fields.token("bos_token_id", null),
    eos_token_id: fields.tokens("eos_token_id"),
    ...optional("do_sample", () => fields.boolean("do_sample", true)),
    ...optional("temperature", () => fields.number("temperature", 1, 0, Infinity)),
    ...optional("top_p", () => fields.number("top_p", 1, 0, 1 + Number.EPSILON)),
    ...optional("top_k", () => fields.number("top_k", 0, 0, Infinity)),
    ...optional("min_p", () => fields.number("min_p", 0, 0, 1 + Number.EPSILON)),
    ...optional("repetition_penalty", () => fields.number("repetition_penalty", 1, Number.MIN_VALUE, Infinity)),
    ...optional("max_new_tokens", () => fields.size("max_new_tokens")),
  };
}

/** Content of a generation_config.json that transformers loads. */
export function formatGenerationConfig(config: GenerationConfig): Record<string, unknown> {
  const { eos_token_id: ends, ...rest } = config;
  return { ...rest, eos_token_id: ends.length > 1 ? ends : ends[0] ?? null };
}
