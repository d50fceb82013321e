/** The model that engines are tested with, and how far its numbers may lie apart. */
import { type Gpt2Config, gpt2Defaults } from "../../model/gpt2_config.ts";

/** Past two full buckets, the second of them ragged; weights large enough that tokens differ. */
export const config: Gpt2Config = {
  ...gpt2Defaults,
  vocab_size: 193,
  n_positions: 150,
  n_embd: 48,
  n_head: 3,
  n_layer: 2,
  initializer_range: 0.3,
};

/** Log-probabilities are differences of sums of size 10 over about 500 f32 roundings. */
export const TOLERANCE = { atol: 1e-4, rtol: 1e-5 };
