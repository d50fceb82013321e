/**
 * Reverse-mode differentiation: a graph goes in, the same graph with gradient calls comes out. Each op brings its own
 * rule (VJP); what stands here walks the calls backwards, sums contributions and replays recompute regions.
 */
import { type Call, count, type Graph, isLeaf, reshape, type Tensor } from "./graph.ts";
import { accumulate, fill } from "./primitives.ts";

/** A value and its gradient from outside: where the walk starts. */
export interface Seed {
  readonly tensor: Tensor;
  readonly gradient: Tensor;
}

/**
 * Gradients of `loss` (a scalar, or values with given gradients) with respect to `wrt`.
 *
 * `into[i]`, where given, is a tensor that the gradient of `wrt[i]` is added to, in place: a gradient variable, or what
 * another op has already added to one. Calls of a recompute region are made again before their gradients are.
 *
 * @throws Error where a call on the way has no gradient rule, or a `wrt` gets no gradient.
 */
export function differentiate(
  loss: Tensor | readonly Seed[],
  wrt: readonly Tensor[],
  into: readonly (Tensor | undefined)[] = [],
): Tensor[] {
  const seeds = "graph" in loss ? [{ tensor: loss, gradient: one(loss) }] : loss;
  const graph = seeds[0].tensor.graph;
  const forward = [...graph.calls];
  graph.forwardCalls ??= forward.length;
  const sums = new Map<Tensor, Tensor>();
  const variable = reachableFrom(forward, wrt);
  wrt.forEach((tensor, i) => into[i] && sums.set(tensor.base, into[i]));
  for (const { tensor, gradient } of seeds) contribute(sums, tensor, gradient);
  const replay = new Replay(graph, forward, variable);
  for (const call of forward.reverse()) {
    const grads = call.outputs.map((output) => gradientOf(sums, output));
    if (grads.every((grad) => grad === null) || !call.inputs.some((input) => variable.has(input.base))) continue;
    backward(call, replay.of(call), grads, sums, variable);
  }
  return wrt.map((tensor) => gradientOf(sums, tensor) ?? noGradient(tensor));
}

function backward(
  call: Call,
  replayed: Call,
  grads: readonly (Tensor | null)[],
  sums: Map<Tensor, Tensor>,
  variable: ReadonlySet<Tensor>,
): void {
  const { vjp, name } = call.op;
  if (vjp === undefined) throw new Error(`Cannot differentiate ${name}: it has no gradient rule`);
  const offered = new Set<Tensor>();
  const into = call.inputs.map((input) => {
    if (!variable.has(input.base) || offered.has(input.base)) return null;
    offered.add(input.base);
    return gradientOf(sums, input);
  });
  const contributions = vjp.call(call.op, replayed, grads, into);
  call.inputs.forEach((input, i) => {
    const contribution = contributions[i];
    if (contribution === null || contribution === undefined || !variable.has(input.base)) return;
    const sum = into[i];
    if (sum !== null && addsInto(contribution, sum)) sums.set(input.base, reshape(contribution, input.base.shape));
    else contribute(sums, input, contribution);
  });
}

function contribute(sums: Map<Tensor, Tensor>, tensor: Tensor, gradient: Tensor): void {
  const sum = sums.get(tensor.base);
  const next = sum === undefined ? gradient : accumulate(sum, gradient);
  sums.set(tensor.base, reshape(next, tensor.base.shape));
}

function gradientOf(sums: ReadonlyMap<Tensor, Tensor>, tensor: Tensor): Tensor | null {
  const sum = sums.get(tensor.base);
  return sum === undefined ? null : reshape(sum, tensor.shape);
}

/** Whether `result` was made in the memory of `sum`. */
function addsInto(result: Tensor, sum: Tensor): boolean {
  const source = result.base.source;
  if (isLeaf(source)) return false;
  const input = source.op.inPlace?.(source)[source.outputs.indexOf(result.base)];
  return input !== undefined && source.inputs[input].base === sum.base;
}

/** Tensors that depend on `wrt`. */
function reachableFrom(calls: readonly Call[], wrt: readonly Tensor[]): Set<Tensor> {
  const reached = new Set(wrt.map((tensor) => tensor.base));
  for (const call of calls) {
    if (call.inputs.some((input) => reached.has(input.base))) {
      for (const output of call.outputs) reached.add(output);
    }
  }
  return reached;
}

function one(loss: Tensor): Tensor {
  if (count(loss) !== 1) {
    throw new RangeError(`Cannot differentiate (${loss.shape.join(", ")}): a loss has one element`);
  }
  return fill(loss.graph, loss.shape, 1);
}

function noGradient(tensor: Tensor): never {
  const name = isLeaf(tensor.source) ? tensor.source.name : `%${tensor.id}`;
  throw new Error(`Cannot differentiate with respect to ${name}: no gradient reaches it`);
}

/** Makes the calls of a recompute region again, once each, when the backward pass first meets the region or its values. */
class Replay {
  readonly #replayed = new Map<Call, Call>();
  readonly #tensors = new Map<Tensor, Tensor>();
  readonly #regions = new Set<number>();

  /** @param variable values that gradients pass through. */
  constructor(readonly graph: Graph, readonly forward: readonly Call[], readonly variable: ReadonlySet<Tensor>) {
    this.forward = [...forward];
  }

  /** The call as its gradient sees it: made again in a region, elsewhere reading what regions made again. */
  of(call: Call): Call {
    if (call.region === null) return { ...call, inputs: call.inputs.map((input) => this.#again(input)) };
    if (!this.#regions.has(call.region)) this.#replay(call.region);
    return this.#replayed.get(call)!;
  }

  #replay(region: number): void {
    this.#regions.add(region);
    for (const call of this.forward) {
      if (call.region !== region) continue;
      const outputs = this.graph.apply(call.op, call.inputs.map((input) => this.#latest(input)), call.attrs);
      call.outputs.forEach((output, i) => this.#tensors.set(output, outputs[i]));
      this.#replayed.set(call, outputs[0].source as Call);
    }
  }

  #again(tensor: Tensor): Tensor {
    const { source } = tensor.base;
    if (isLeaf(source) || source.region === null || !this.variable.has(tensor.base)) return tensor;
    if (!this.#regions.has(source.region)) this.#replay(source.region);
    return this.#latest(tensor);
  }

  #latest(tensor: Tensor): Tensor {
    const replayed = this.#tensors.get(tensor.base);
    return replayed === undefined ? tensor : reshape(replayed, tensor.shape);
  }
}
