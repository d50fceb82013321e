/**
 * A GPT-2 training step in jax-js, compiled as one function: loss, gradients and AdamW. jax-js counts references: a
 * function consumes its arguments, `.ref` keeps one. It is written for the devices that jax-js has, not for one.
 */
import { blockUntilReady, jit, nn, numpy as np, valueAndGrad } from "@jax-js/jax";
import { OPTIMIZER, type StepWork, tokenAt } from "../work.ts";

type Parameters = Record<string, np.Array>;

const INIT_RANGE = 0.035;

function uniform(shape: readonly number[], seed: number): np.Array {
  let state = seed;
  const length = shape.reduce((product, size) => product * size, 1);
  const values = Float32Array.from({ length }, () => {
    state = Math.imul(state, 1664525) + 1013904223 | 0;
    return state / 2 ** 31 * INIT_RANGE;
  });
  return np.array(values).reshape([...shape]);
}

function initialize({ layers, width: C, context, vocabulary }: StepWork): Parameters {
  let seed = 1;
  const matrix = (...shape: number[]) => uniform(shape, seed++);
  const norm = (name: string) => ({ [`${name}.weight`]: np.ones([C]), [`${name}.bias`]: np.zeros([C]) });
  const linear = (name: string, from: number, to: number) => ({
    [`${name}.weight`]: matrix(from, to),
    [`${name}.bias`]: np.zeros([to]),
  });
  const parameters: Parameters = { wte: matrix(vocabulary, C), wpe: matrix(context, C), ...norm("ln_f") };
  for (let layer = 0; layer < layers; layer++) {
    Object.assign(
      parameters,
      norm(`${layer}.ln_1`),
      linear(`${layer}.c_attn`, C, 3 * C),
      linear(`${layer}.attn_proj`, C, C),
      norm(`${layer}.ln_2`),
      linear(`${layer}.c_fc`, C, 4 * C),
      linear(`${layer}.mlp_proj`, 4 * C, C),
    );
  }
  return parameters;
}

/** Mean cross-entropy. One-hot products instead of gathers: those have no gradient in Deno's WebGPU, and are no faster. */
function lossOf({ layers, width: C, heads: H, context: T, vocabulary: V, rows: B }: StepWork) {
  return (p: Parameters, tokens: np.Array, targets: np.Array): np.Array => {
    const norm = (x: np.Array, name: string) =>
      nn.standardize(x, -1).mul(p[`${name}.weight`].ref).add(p[`${name}.bias`].ref);
    const linear = (x: np.Array, name: string) => np.matmul(x, p[`${name}.weight`].ref).add(p[`${name}.bias`].ref);
    const embedded = np.matmul(nn.oneHot(tokens, V), p.wte.ref).reshape([B, T, C]);
    let x = embedded.add(p.wpe.ref).reshape([B * T, C]);
    for (let layer = 0; layer < layers; layer++) {
      const qkv = linear(norm(x.ref, `${layer}.ln_1`), `${layer}.c_attn`).reshape([B, T, 3, H, C / H]);
      const [q, k, v] = [0, 1, 2].map((i) => qkv.ref.slice([], [], i));
      qkv.dispose();
      const attended = nn.dotProductAttention(q, k, v, { isCausal: true }).reshape([B * T, C]);
      x = x.add(linear(attended, `${layer}.attn_proj`));
      const hidden = nn.gelu(linear(norm(x.ref, `${layer}.ln_2`), `${layer}.c_fc`));
      x = x.add(linear(hidden, `${layer}.mlp_proj`));
    }
    const logits = np.matmul(norm(x, "ln_f"), p.wte.ref.transpose());
    const loss = nn.logSoftmax(logits, -1).mul(nn.oneHot(targets, V)).sum().mul(-1 / (B * T));
    Object.values(p).forEach((parameter) => parameter.dispose());
    return loss;
  };
}

type State = [parameters: Parameters, expAvg: Parameters, expAvgSq: Parameters];

function compileStep(work: StepWork) {
  const { learningRate, beta1, beta2, eps, weightDecay } = OPTIMIZER;
  const lossAndGradients = valueAndGrad(lossOf(work));
  return jit(
    (p: Parameters, m: Parameters, v: Parameters, corrections: np.Array, tokens: np.Array, targets: np.Array) => {
      const kept = Object.fromEntries(Object.entries(p).map(([name, parameter]) => [name, parameter.ref]));
      const [loss, gradients] = lossAndGradients(kept, tokens, targets) as [np.Array, Parameters];
      const next: State = [{}, {}, {}];
      for (const [name, parameter] of Object.entries(p)) {
        const expAvg = m[name].mul(beta1).add(gradients[name].ref.mul(1 - beta1));
        const expAvgSq = v[name].mul(beta2).add(np.square(gradients[name]).mul(1 - beta2));
        const corrected = expAvg.ref.div(corrections.ref.slice(0));
        const deviation = np.sqrt(expAvgSq.ref.div(corrections.ref.slice(1))).add(eps);
        const decay = parameter.shape.length > 1 ? 1 - learningRate * weightDecay : 1;
        next[0][name] = parameter.mul(decay).sub(corrected.div(deviation).mul(learningRate));
        next[1][name] = expAvg;
        next[2][name] = expAvgSq;
      }
      corrections.dispose();
      return [loss, ...next] as [np.Array, Parameters, Parameters, Parameters];
    },
  );
}

/** Compiles and runs one step. @returns what runs another and waits for it, giving milliseconds. */
export async function openJaxStep(work: StepWork): Promise<() => Promise<number>> {
  const { context, vocabulary, rows } = work;
  const step = compileStep(work);
  const parameters = initialize(work);
  const zeros = () =>
    Object.fromEntries(Object.entries(parameters).map(([name, { shape }]) => [name, np.zeros(shape)]));
  let state: State = [parameters, zeros(), zeros()];
  const ids = (shift: number) =>
    np.array(Int32Array.from({ length: rows * context }, (_, i) => tokenAt(i + shift, vocabulary)), {
      dtype: np.int32,
    });
  const [tokens, targets] = [ids(0), ids(1)];
  let update = 0;
  const run = async () => {
    const start = performance.now();
    update++;
    const corrections = np.array([1 - OPTIMIZER.beta1 ** update, 1 - OPTIMIZER.beta2 ** update]);
    const [loss, ...next] = step(...state, corrections, tokens.ref, targets.ref);
    state = next;
    const [value] = await loss.data();
    await blockUntilReady(next);
    if (update === 1 && Math.abs(value - Math.log(vocabulary)) > 1) throw new Error(`its first loss is ${value}`);
    return performance.now() - start;
  };
  await run();
  return run;
}
