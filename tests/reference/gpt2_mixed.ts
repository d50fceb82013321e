/**
 * GPT-2's loss and gradients in f64 by plain loops, with both operands of every product with a weight rounded, backwards as
 * forwards: the specification of mixed precision. Each function returns its value and how a gradient goes back through it.
 *
 * Shapes: T tokens of one document, C channels, H heads, D head size, V vocabulary. Matrices stand (in, out).
 */
import { attentionScale, type Gpt2Config } from "../../model/gpt2_config.ts";
import type { Gpt2Parameters } from "./gpt2.ts";

export interface Mixed {
  /** Rounds an operand. */
  readonly round: (value: number) => number;
  /** What gradients are multiplied by before they are rounded, and divided by after. */
  readonly lossScale: number;
}

interface Node {
  readonly y: Float64Array;
  readonly back: (dy: Float64Array) => Float64Array;
}

/** Mean loss over all targets and the gradient of each parameter. */
export function gpt2Mixed(
  config: Gpt2Config,
  parameters: Gpt2Parameters,
  documents: readonly { tokens: readonly number[]; targets: readonly number[] }[],
  mixed: Mixed,
): { loss: number; gradients: Map<string, Float64Array> } {
  const gradients = new Map([...parameters].map(([name, values]) => [name, new Float64Array(values.length)]));
  const p = (name: string) => ({
    value: parameters.get(`transformer.${name}`)!,
    grad: gradients.get(`transformer.${name}`)!,
  });
  const count = documents.reduce((sum, { targets }) => sum + targets.length, 0);
  let loss = 0;
  for (const { tokens, targets } of documents) {
    const { y: x, back } = embed(tokens, p("wte.weight"), p("wpe.weight"), config.n_embd);
    const nodes: ((x: Float64Array) => Node)[] = [];
    for (let layer = 0; layer < config.n_layer; layer++) {
      const linear = (name: string) => (x: Float64Array) => {
        return affine(x, tokens.length, p(`h.${layer}.${name}.weight`), p(`h.${layer}.${name}.bias`), mixed);
      };
      const norm = (name: string) => (x: Float64Array) => {
        return layerNorm(x, p(`h.${layer}.${name}.weight`), p(`h.${layer}.${name}.bias`), config.layer_norm_epsilon);
      };
      const attend = (qkv: Float64Array) => attention(qkv, tokens.length, config);
      nodes.push(residual([norm("ln_1"), linear("attn.c_attn"), attend, linear("attn.c_proj")]));
      nodes.push(residual([norm("ln_2"), linear("mlp.c_fc"), gelu, linear("mlp.c_proj")]));
    }
    nodes.push((x) => layerNorm(x, p("ln_f.weight"), p("ln_f.bias"), config.layer_norm_epsilon));
    const body = chain(nodes)(x);
    const head = crossEntropy(body.y, p("wte.weight"), targets, 1 / count, mixed);
    loss += head.loss;
    back(body.back(head.dhidden));
  }
  return { loss, gradients };
}

interface Weight {
  readonly value: ArrayLike<number>;
  readonly grad: Float64Array;
}

function chain(functions: readonly ((x: Float64Array) => Node)[]): (x: Float64Array) => Node {
  return (x) => {
    const nodes: Node[] = [];
    for (const each of functions) nodes.push(each(nodes.at(-1)?.y ?? x));
    return { y: nodes.at(-1)!.y, back: (dy) => nodes.reduceRight((gradient, node) => node.back(gradient), dy) };
  };
}

function residual(functions: readonly ((x: Float64Array) => Node)[]): (x: Float64Array) => Node {
  return (x) => {
    const branch = chain(functions)(x);
    return { y: sum(x, branch.y), back: (dy) => sum(dy, branch.back(dy)) };
  };
}

function sum(a: Float64Array, b: Float64Array): Float64Array {
  return a.map((value, i) => value + b[i]);
}

function embed(tokens: readonly number[], wte: Weight, wpe: Weight, C: number): Node {
  const at = (i: number) => tokens[Math.floor(i / C)] * C + i % C;
  return {
    y: Float64Array.from({ length: tokens.length * C }, (_, i) => wte.value[at(i)] + wpe.value[i]),
    back(dy) {
      dy.forEach((value, i) => {
        wte.grad[at(i)] += value;
        wpe.grad[i] += value;
      });
      return dy;
    },
  };
}

function affine(x: Float64Array, T: number, weight: Weight, bias: Weight, { round, lossScale }: Mixed): Node {
  const [inner, outer] = [x.length / T, bias.value.length];
  const a = x.map(round);
  const w = Float64Array.from(weight.value, round);
  const y = Float64Array.from({ length: T * outer }, (_, i) => bias.value[i % outer]);
  eachProduct(T, inner, outer, (t, i, o) => y[t * outer + o] += a[t * inner + i] * w[i * outer + o]);
  return {
    y,
    back(dy) {
      const d = dy.map((value) => round(value * lossScale) / lossScale);
      const dx = new Float64Array(x.length);
      dy.forEach((value, i) => bias.grad[i % outer] += value);
      eachProduct(T, inner, outer, (t, i, o) => {
        dx[t * inner + i] += d[t * outer + o] * w[i * outer + o];
        weight.grad[i * outer + o] += a[t * inner + i] * d[t * outer + o];
      });
      return dx;
    },
  };
}

function eachProduct(T: number, inner: number, outer: number, body: (t: number, i: number, o: number) => void): void {
  for (let t = 0; t < T; t++) for (let i = 0; i < inner; i++) for (let o = 0; o < outer; o++) body(t, i, o);
}

function layerNorm(x: Float64Array, weight: Weight, bias: Weight, eps: number): Node {
  const C = weight.value.length;
  const normed = new Float64Array(x.length);
  const rstd = new Float64Array(x.length / C);
  for (let row = 0; row < rstd.length; row++) {
    const values = x.subarray(row * C, (row + 1) * C);
    const mean = values.reduce((a, b) => a + b) / C;
    rstd[row] = 1 / Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / C + eps);
    values.forEach((value, c) => normed[row * C + c] = (value - mean) * rstd[row]);
  }
  return {
    y: normed.map((value, i) => value * weight.value[i % C] + bias.value[i % C]),
    back(dy) {
      const dx = new Float64Array(x.length);
      for (let row = 0; row < rstd.length; row++) {
        const n = normed.subarray(row * C, (row + 1) * C);
        const d = n.map((_, c) => dy[row * C + c] * weight.value[c]);
        const mean = d.reduce((a, b) => a + b) / C;
        const along = d.reduce((sum, value, c) => sum + value * n[c], 0) / C;
        for (let c = 0; c < C; c++) {
          dx[row * C + c] = (d[c] - mean - n[c] * along) * rstd[row];
          weight.grad[c] += dy[row * C + c] * n[c];
          bias.grad[c] += dy[row * C + c];
        }
      }
      return dx;
    },
  };
}

/** GELU's tanh form. */
function gelu(x: Float64Array): Node {
  const k = Math.sqrt(2 / Math.PI);
  const tanh = x.map((value) => Math.tanh(k * (value + 0.044715 * value ** 3)));
  return {
    y: x.map((value, i) => 0.5 * value * (1 + tanh[i])),
    back: (dy) =>
      dy.map((d, i) => {
        const slope = k * (1 + 3 * 0.044715 * x[i] ** 2) * (1 - tanh[i] ** 2);
        return d * 0.5 * (1 + tanh[i] + x[i] * slope);
      }),
  };
}

/** (T, 3C) → (T, C), causal. */
function attention(qkv: Float64Array, T: number, config: Gpt2Config): Node {
  const { n_embd: C, n_head: H } = config;
  const D = C / H;
  const scale = attentionScale(config);
  const at = (part: number, t: number, h: number, d: number) => t * 3 * C + part * C + h * D + d;
  const dot = (f: (d: number) => number) => Array.from({ length: D }, (_, d) => f(d)).reduce((a, b) => a + b);
  const y = new Float64Array(T * C);
  const weights: number[][] = [];
  for (let h = 0; h < H; h++) {
    for (let t = 0; t < T; t++) {
      const exps = Array.from(
        { length: t + 1 },
        (_, s) => Math.exp(scale * dot((d) => qkv[at(0, t, h, d)] * qkv[at(1, s, h, d)])),
      );
      const total = exps.reduce((a, b) => a + b);
      weights[h * T + t] = exps.map((value) => value / total);
      for (let d = 0; d < D; d++) {
        weights[h * T + t].forEach((weight, s) => y[t * C + h * D + d] += weight * qkv[at(2, s, h, d)]);
      }
    }
  }
  const back = (dy: Float64Array) => {
    const dqkv = new Float64Array(qkv.length);
    for (let h = 0; h < H; h++) {
      for (let t = 0; t < T; t++) {
        const w = weights[h * T + t];
        const dw = w.map((_, s) => dot((d) => dy[t * C + h * D + d] * qkv[at(2, s, h, d)]));
        const mean = w.reduce((sum, weight, s) => sum + weight * dw[s], 0);
        w.forEach((weight, s) => {
          const ds = weight * (dw[s] - mean) * scale;
          for (let d = 0; d < D; d++) {
            dqkv[at(0, t, h, d)] += ds * qkv[at(1, s, h, d)];
            dqkv[at(1, s, h, d)] += ds * qkv[at(0, t, h, d)];
            dqkv[at(2, s, h, d)] += weight * dy[t * C + h * D + d];
          }
        });
      }
    }
    return dqkv;
  };
  return { y, back };
}

/** The head's operands are rounded; the gradient of the logits, which never leaves the kernel, is not. */
function crossEntropy(
  x: Float64Array,
  table: Weight,
  targets: readonly number[],
  scale: number,
  { round }: Mixed,
): { loss: number; dhidden: Float64Array } {
  const T = targets.length;
  const C = x.length / T;
  const V = table.value.length / C;
  const hidden = x.map(round);
  const w = Float64Array.from(table.value, round);
  const dhidden = new Float64Array(x.length);
  let loss = 0;
  for (let t = 0; t < T; t++) {
    const logits = new Float64Array(V);
    for (let v = 0; v < V; v++) for (let c = 0; c < C; c++) logits[v] += hidden[t * C + c] * w[v * C + c];
    const total = logits.reduce((sum, logit) => sum + Math.exp(logit), 0);
    loss += (Math.log(total) - logits[targets[t]]) * scale;
    for (let v = 0; v < V; v++) {
      const d = (Math.exp(logits[v]) / total - (v === targets[t] ? 1 : 0)) * scale;
      for (let c = 0; c < C; c++) {
        dhidden[t * C + c] += d * w[v * C + c];
        table.grad[v * C + c] += d * hidden[t * C + c];
      }
    }
  }
  return { loss, dhidden };
}
