/**
 * GPT-2 (Radford et al. 2019) in f64 by plain loops: the specification of the model's forward pass and loss. It knows no batch:
 * a row of tokens is a document, and documents don't see each other.
 *
 * Shapes: T tokens, C channels, H heads, D head size, V vocabulary. Matrices stand (in, out), as in the checkpoints.
 */

import { attentionScale, geluForm, type Gpt2Config } from "../../model/gpt2_config.ts";

/** Parameters by their Hugging Face names with the `transformer.` prefix. */
export type Gpt2Parameters = ReadonlyMap<string, ArrayLike<number>>;

/** Logits (T, V) of one document. */
export function gpt2Logits(config: Gpt2Config, parameters: Gpt2Parameters, tokens: ArrayLike<number>): Float64Array {
  const { n_embd: C, n_layer, vocab_size: V, layer_norm_epsilon: eps } = config;
  const T = tokens.length;
  const p = (name: string) => parameters.get(`transformer.${name}`)!;
  const norm = (x: Float64Array, name: string) => layerNorm(x, p(`${name}.weight`), p(`${name}.bias`), eps);
  const linear = (x: Float64Array, name: string) => affine(x, T, p(`${name}.weight`), p(`${name}.bias`));

  const wte = p("wte.weight");
  const wpe = p("wpe.weight");
  const x = Float64Array.from({ length: T * C }, (_, i) => wte[tokens[Math.floor(i / C)] * C + i % C] + wpe[i]); // (T, C)
  for (let layer = 0; layer < n_layer; layer++) {
    const h = `h.${layer}`;
    const qkv = linear(norm(x, `${h}.ln_1`), `${h}.attn.c_attn`); // (T, 3C)
    addTo(x, linear(causalAttention(qkv, T, config), `${h}.attn.c_proj`));
    const wide = linear(norm(x, `${h}.ln_2`), `${h}.mlp.c_fc`); // (T, inner)
    addTo(x, linear(wide.map(geluForm(config) === "tanh" ? geluTanh : geluErf), `${h}.mlp.c_proj`));
  }
  const hidden = norm(x, "ln_f"); // (T, C)
  return Float64Array.from({ length: T * V }, (_, i) => {
    const [t, token] = [Math.floor(i / V), i % V];
    let sum = 0;
    for (let c = 0; c < C; c++) sum += hidden[t * C + c] * wte[token * C + c];
    return sum;
  });
}

/** Mean cross-entropy over all documents' targets other than -100. */
export function gpt2Loss(
  config: Gpt2Config,
  parameters: Gpt2Parameters,
  tokens: readonly ArrayLike<number>[],
  targets: readonly ArrayLike<number>[],
): number {
  let total = 0;
  let valid = 0;
  tokens.forEach((row, b) => {
    const logits = gpt2Logits(config, parameters, row);
    for (let t = 0; t < row.length; t++) {
      const target = targets[b][t];
      if (target === -100) continue;
      const scores = logits.subarray(t * config.vocab_size, (t + 1) * config.vocab_size);
      const largest = scores.reduce((a, b) => Math.max(a, b));
      const sum = scores.reduce((sum, score) => sum + Math.exp(score - largest), 0);
      total += largest + Math.log(sum) - scores[target];
      valid++;
    }
  });
  return total / valid;
}

/** (T, 3C) → (T, C): query, key and value stand side by side, each split into heads. */
function causalAttention(qkv: Float64Array, T: number, config: Gpt2Config): Float64Array {
  const { n_embd: C, n_head: H } = config;
  const D = C / H;
  const out = new Float64Array(T * C);
  for (let h = 0; h < H; h++) {
    const q = (t: number, d: number) => qkv[t * 3 * C + h * D + d];
    const k = (t: number, d: number) => qkv[t * 3 * C + C + h * D + d];
    const v = (t: number, d: number) => qkv[t * 3 * C + 2 * C + h * D + d];
    for (let t = 0; t < T; t++) {
      const scores: number[] = [];
      for (let s = 0; s <= t; s++) {
        let dot = 0;
        for (let d = 0; d < D; d++) dot += q(t, d) * k(s, d);
        scores.push(dot * attentionScale(config));
      }
      const largest = Math.max(...scores);
      const weights = scores.map((score) => Math.exp(score - largest));
      const sum = weights.reduce((a, b) => a + b);
      for (let d = 0; d < D; d++) {
        out[t * C + h * D + d] = weights.reduce((mixed, weight, s) => mixed + weight / sum * v(s, d), 0);
      }
    }
  }
  return out;
}

/** Layer norm (Ba et al. 2016) of each row; the variance is the biased one. */
function layerNorm(x: Float64Array, weight: ArrayLike<number>, bias: ArrayLike<number>, eps: number): Float64Array {
  const C = weight.length;
  const out = new Float64Array(x.length);
  for (let row = 0; row < x.length; row += C) {
    const values = x.subarray(row, row + C);
    const mean = values.reduce((a, b) => a + b) / C;
    const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / C;
    for (let c = 0; c < C; c++) out[row + c] = (values[c] - mean) / Math.sqrt(variance + eps) * weight[c] + bias[c];
  }
  return out;
}

/** x (T, in) · weight (in, out) + bias (out). */
function affine(x: Float64Array, T: number, weight: ArrayLike<number>, bias: ArrayLike<number>): Float64Array {
  const columns = bias.length;
  const rows = x.length / T;
  const out = new Float64Array(T * columns);
  for (let t = 0; t < T; t++) {
    for (let column = 0; column < columns; column++) {
      let sum = bias[column];
      for (let i = 0; i < rows; i++) sum += x[t * rows + i] * weight[i * columns + column];
      out[t * columns + column] = sum;
    }
  }
  return out;
}

function addTo(x: Float64Array, y: Float64Array): void {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
}

/** GELU (Hendrycks and Gimpel 2016), their approximation by tanh. */
function geluTanh(x: number): number {
  return 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
}

function geluErf(x: number): number {
  return 0.5 * x * (1 + erf(x / Math.SQRT2));
}

/** 2/√π · e^(-x²) · Σ 2ⁿ x^(2n+1) / (1·3·…·(2n+1)): all terms have one sign, so nothing cancels. */
function erf(x: number): number {
  if (Math.abs(x) > 6) return Math.sign(x);
  let term = x;
  let sum = x;
  for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) {
    term *= 2 * x * x / (2 * n + 1);
    sum += term;
  }
  return 2 / Math.sqrt(Math.PI) * Math.exp(-x * x) * sum;
}
