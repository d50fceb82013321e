/** config.json and generation_config.json: what is missing, malformed or not computed here is refused by name. No GPU. */

import assert from "node:assert/strict";
import { parseGenerationConfig } from "../../model/generation_config.ts";
import { parseGpt2Config } from "../../model/gpt2_config.ts";

const small = { model_type: "gpt2", n_layer: 1, n_head: 2, n_embd: 8, n_positions: 5, vocab_size: 11 };

Deno.test("config: every field that doesn't fit is named", () => {
  const faults: [Record<string, unknown>, RegExp][] = [
    [{ n_layer: undefined }, /^Cannot use config\.json: n_layer: the field is missing$/],
    [{ vocab_size: null }, /vocab_size: the field is missing/],
    [{ model_type: undefined }, /model_type: the field is missing/],
    [{ model_type: "llama" }, /model_type: found "llama", wanted "gpt2"/],
    [{ n_embd: "8" }, /n_embd: found "8", wanted an integer from 1/],
    [{ n_embd: 8.5 }, /n_embd: found 8.5/],
    [{ n_positions: 0 }, /n_positions: found 0/],
    [{ n_layer: 1e9 }, /n_layer: found 1000000000, wanted an integer from 1 to 4096/],
    [{ n_head: 3 }, /n_embd: 8 is no multiple of n_head 3/],
    [{ n_inner: -1 }, /n_inner: found -1/],
    [{ activation_function: "relu" }, /activation_function: found "relu", wanted "gelu_new" or .* or "gelu"$/],
    [{ layer_norm_epsilon: "1e-5" }, /layer_norm_epsilon: found "1e-5"/],
    [{ attn_pdrop: 1 }, /attn_pdrop: found 1, wanted a number from 0 to below 1/],
    [{ scale_attn_weights: 1 }, /scale_attn_weights: found 1, wanted true or false/],
    [{ scale_attn_by_inverse_layer_idx: true }, /scale_attn_by_inverse_layer_idx: true is not supported/],
    [{ reorder_and_upcast_attn: true }, /reorder_and_upcast_attn: true is not supported/],
    [{ add_cross_attention: true }, /add_cross_attention: true is not supported/],
    [{ tie_word_embeddings: false }, /tie_word_embeddings: false is not supported/],
    [{ eos_token_id: -1 }, /eos_token_id: found -1, wanted a token id/],
    [{ architectures: "GPT2" }, /architectures: found "GPT2", wanted a list of names/],
  ];
  for (const [change, message] of faults) {
    assert.throws(() => parseGpt2Config({ ...small, ...change }, "config.json"), { name: "UserError", message });
  }
  for (const json of [null, [], "gpt2", 3]) {
    assert.throws(() => parseGpt2Config(json, "config.json"), { message: /config\.json: it holds no JSON object/ });
  }
  const published = { ...small, vocab_size: 50257 };
  assert.equal(parseGpt2Config(published, "").eos_token_id, 50256);
  assert.equal(parseGpt2Config({ ...published, eos_token_id: null }, "").eos_token_id, null);
  assert.equal(parseGpt2Config(small, "").eos_token_id, null);
  assert.deepEqual(parseGenerationConfig({ eos_token_id: 3 }, "").eos_token_id, [3]);
  assert.throws(() => parseGenerationConfig({ eos_token_id: [3, -1] }, "g.json"), /g\.json: eos_token_id: found/);
});
