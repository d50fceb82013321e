/**
 * GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners") exactly as published: pre-norm
 * blocks, learned positions, GELU's tanh form, the head tied to the token table. It knows no memory and no batch.
 *
 * Shapes: N rows, C channels, H heads, D head size, V vocabulary, L layers.
 */
import { embedding } from "../kernels/embedding.ts";
import { reshape, type Tensor } from "../kernels/gpu/graph.ts";
import { headsIn } from "../kernels/heads.ts";
import { layerNorm, residualLayerNorm } from "../kernels/norm.ts";
import { add, gelu } from "../kernels/pointwise.ts";
import type { Architecture, Context } from "./context.ts";
import { attentionScale, geluForm, type Gpt2Config, innerSize } from "./gpt2_config.ts";
import { linear, lookup } from "./linear.ts";
import { type Declaration, type Init, ones, type Scope, zeros } from "./scope.ts";

/** Rows of the token table come in multiples of this, in memory only: kernels like whole tiles. */
const VOCABULARY_PADDING = 64;

/** Every name in a GPT-2 checkpoint starts with it. */
export const PREFIX = "transformer";

/** GPT-2 of the sizes, rates and constants that a config.json names. */
export function gpt2(config: Gpt2Config): Architecture {
  return {
    config: { ...config },
    hidden: (p, context) => hidden(config, p.within(PREFIX), context),
    unembed: (p) => p.within(PREFIX).table(tokenTable(config), "products"),
  };
}

function tokenTable({ vocab_size, n_embd, initializer_range }: Gpt2Config): Declaration {
  return ["wte.weight", [vocab_size, n_embd], { std: initializer_range }, VOCABULARY_PADDING];
}

function hidden(config: Gpt2Config, p: Scope, context: Context): Tensor {
  const { n_positions, n_embd, n_layer, initializer_range } = config;
  const wte = p.table(tokenTable(config), "others");
  const wpe = p.parameter("wpe.weight", [n_positions, n_embd], { std: initializer_range });
  const embedded = add(lookup(wte, context.tokens), embedding(wpe, context.positions)); // (N, C)
  const sum = context.dropout(embedded, config.embd_pdrop);
  let stream: Stream = { sum, normed: norm(config, context, p.within(normName(config, 0)), sum) };
  for (let layer = 0; layer < n_layer; layer++) {
    stream = context.block(() => block(config, p, context, layer, stream));
  }
  return stream.normed;
}

/** The residual stream and its norm for the next reader. Each norm is computed with the sum before it. */
interface Stream {
  readonly sum: Tensor; // (N, C)
  readonly normed: Tensor; // (N, C)
}

function block(config: Gpt2Config, p: Scope, context: Context, layer: number, stream: Stream): Stream {
  const h = p.within(`h.${layer}`);
  const attended = selfAttention(config, h.within("attn"), context, layer, stream.normed);
  const middle = residual(config, context, h.within("ln_2"), stream.sum, attended);
  const transformed = mlp(config, h.within("mlp"), context, middle.normed);
  return residual(config, context, p.within(normName(config, layer + 1)), middle.sum, transformed);
}

function selfAttention(config: Gpt2Config, p: Scope, context: Context, layer: number, x: Tensor): Tensor {
  const { n_embd: C, n_head: H } = config;
  const D = C / H;
  const qkv = linear(p.within("c_attn"), x, 3 * C, { std: config.initializer_range }); // (N, 3C)
  const [q, k, v] = headsIn(qkv, [H, H, H], D); // (N, H, D)
  const attend = { scale: attentionScale(config), dropout: config.attn_pdrop };
  const y = context.cheap(() => context.attend(layer, q, k, v, attend)); // (N, H, D)
  return linear(p.within("c_proj"), reshape(y, x.shape), C, projection(config)); // (N, C)
}

function mlp(config: Gpt2Config, p: Scope, context: Context, x: Tensor): Tensor {
  const wide = linear(p.within("c_fc"), x, innerSize(config), { std: config.initializer_range }); // (N, 4C)
  const active = context.cheap(() => gelu(wide, geluForm(config))); // (N, 4C)
  return linear(p.within("c_proj"), active, config.n_embd, projection(config)); // (N, C)
}

function residual(config: Gpt2Config, context: Context, p: Scope, x: Tensor, branch: Tensor): Stream {
  if (context.recomputesCheap) {
    const sum = add(context.dropout(branch, config.resid_pdrop), x);
    return { sum, normed: norm(config, context, p, sum) };
  }
  const { weight, bias } = normParameters(config, p);
  return residualLayerNorm(branch, x, weight, bias, config.layer_norm_epsilon, context.dropping(config.resid_pdrop));
}

function norm(config: Gpt2Config, context: Context, p: Scope, x: Tensor): Tensor {
  const { weight, bias } = normParameters(config, p);
  return context.cheap(() => layerNorm(x, weight, bias, config.layer_norm_epsilon));
}

function normParameters({ n_embd }: Gpt2Config, p: Scope): { weight: Tensor; bias: Tensor } {
  return { weight: p.parameter("weight", [n_embd], ones), bias: p.parameter("bias", [n_embd], zeros) };
}

/** The norm that follows layer `layer - 1`: the next block's first, or the last one. */
function normName({ n_layer }: Gpt2Config, layer: number): string {
  return layer < n_layer ? `h.${layer}.ln_1` : "ln_f";
}

/** Projections into the residual stream start smaller by √(2L), the number of additions to it. */
function projection({ initializer_range, n_layer }: Gpt2Config): Init {
  return { std: initializer_range / Math.sqrt(2 * n_layer) };
}
