/**
 * The graphs of a training step and the variables they stand on: microstep (forward, backward, gradients added), update
 * (norm, clip, AdamW), evaluate and the refreshing of copies. Pure: it knows no device, so that a run's memory and work are
 * known before anything is made.
 */
import { adamw, type AdamWOptions } from "../kernels/adamw.ts";
import { Graph, type Tensor } from "../kernels/gpu/graph.ts";
import type { Entry, Layout } from "../kernels/gpu/layout.ts";
import { accumulate, zero } from "../kernels/gpu/primitives.ts";
import { scale } from "../kernels/pointwise.ts";
import { clipCoefficient, sumOfSquares } from "../kernels/reduce.ts";
import type { DenseBatch } from "../model/batch.ts";
import { denseContext, type DenseOptions } from "../model/context.ts";
import { evaluation, objective } from "../model/objective.ts";
import type { Shape } from "../model/shape.ts";
import { type Part, partEntries, type Sharded, variablesOf } from "./parts.ts";
import { formatsOf, lossScale, type Precision, precisionEntries, refreshed, unscaled } from "./precision.ts";

/** Decoupled weight decay (Loshchilov and Hutter 2019); decay goes to tensors of two and more dimensions. */
export interface OptimizerOptions extends AdamWOptions {
  /** Largest norm of all gradients together; larger ones are scaled down. 0 clips nothing. */
  readonly clip: number;
}

export interface StepOptions {
  /** Rows of a microbatch. */
  readonly rows: number;
  readonly optimizer: OptimizerOptions;
  /** Drop as the model's configuration asks. */
  readonly dropout: boolean;
  readonly recompute?: DenseOptions["recompute"];
  /** Default: f32. */
  readonly precision?: Precision;
}

/** A graph and what its program is asked for. */
export interface DrawnGraph {
  readonly graph: Graph;
  readonly outputs: Readonly<Record<string, Tensor>>;
}

/** Kinds of variables that a checkpoint keeps, by the prefix of their names. */
export const kinds = { parameter: "", expAvg: "exp_avg/", expAvgSq: "exp_avg_sq/" } as const;
export type Kind = keyof typeof kinds;

const GRADIENT = "gradient/";
/** Sum of the losses of the microsteps since the last update. */
export const LOSS = "loss";

/** A norm that no finite gradient passes. */
const UNCLIPPED = 3e38;

/** Variables that a step needs beside the parameters, by kind; of the moments only a rank's own where there are parts. */
export function stepEntries(
  { declared }: Shape,
  precision: Precision,
  parts?: readonly Part[],
): (readonly [kind: string, Entry[]])[] {
  const beside = (prefix: string) =>
    declared.map(({ name, padded, decay }): Entry => ({ name: prefix + name, shape: padded, dtype: "f32", decay }));
  const moments = (prefix: string) => parts === undefined ? beside(prefix) : partEntries(parts, prefix);
  return [
    ["gradient", beside(GRADIENT)],
    ["exp_avg", moments(kinds.expAvg)],
    ["exp_avg_sq", moments(kinds.expAvgSq)],
    ["loss", [{ name: LOSS, shape: [1], dtype: "f32" }]],
    ...precisionEntries(declared, precision),
  ];
}

/** Where a microbatch stands, so that dropout depends on nothing else. */
export interface Place {
  readonly seed: number;
  /** Number of the update, counted from 1. */
  readonly update: number;
  /** Index of the microbatch's first row within the whole update. */
  readonly firstRow: number;
}

/** A graph that adds to gradients. */
export interface GradientGraph extends DrawnGraph {
  /** The variables of gradients, with their values when all was added. */
  readonly gradients: readonly { readonly variable: string; readonly value: Tensor }[];
}

/** Loss and gradients of `rows` rows, added to the variables of both. */
export function microstepGraph(
  { architecture, config }: Shape,
  rows: number,
  { dropout, recompute, precision = "f32" }: StepOptions,
): GradientGraph {
  const graph = new Graph();
  const context = denseContext(graph, rows, { dropout, recompute, longest: config.n_positions });
  const { loss, parameters, gradients } = objective(graph, architecture, context, config.vocab_size, {
    formats: formatsOf(precision),
    into: ({ name, padded }) => graph.variable(GRADIENT + name, padded),
    lossScale: lossScale(graph, precision),
  });
  accumulate(graph.variable(LOSS, [1]), loss);
  return {
    graph,
    outputs: {},
    gradients: parameters.map(({ name }, i) => ({ variable: GRADIENT + name, value: gradients[i] })),
  };
}

/** What a microstep's program is run with. @param names of the program's inputs. */
export function microstepInputs(
  names: readonly string[],
  { tokens, targets, positions, starts }: DenseBatch,
  { seed, update, firstRow, scale }: Place & { readonly scale: number },
) {
  const inputs = { tokens, targets, positions, starts, scale: new Float32Array([scale]) };
  const drops = names.includes("counter");
  return drops ? { ...inputs, counter: new Uint32Array([seed, update, firstRow, 0]) } : inputs;
}

/**
 * Clipping, AdamW over flat ranges of a layout, which clears the gradients, and zero for the loss. Where there are parts,
 * only these are updated, and all gradients cleared.
 */
export function updateGraph(
  layout: Layout,
  { optimizer: { clip, ...options }, precision }: StepOptions,
  parts?: Sharded,
): DrawnGraph {
  const graph = new Graph();
  const tensorOf = ({ name, elements }: { readonly name: string; readonly elements: number }) =>
    graph.variable(name, [elements]);
  const squaredNorm = sumOfSquares(layout.ranges("gradient").map(tensorOf));
  const maxNorm = clip || UNCLIPPED;
  const loss = graph.variable(LOSS, [1]);
  const { hyper, ...outputs } = precision === "f16"
    ? unscaled(squaredNorm, loss, { maxNorm, ...options })
    : { loss: scale(loss, 1), clip: clipCoefficient(squaredNorm, maxNorm), hyper: graph.input("hyper", [4]) };
  const owned = (kind: string) => parts === undefined ? layout.ranges(kind) : variablesOf(parts.own, kind);
  const [gradients, expAvg, expAvgSq] = ["gradient", "exp_avg", "exp_avg_sq"].map((kind) => owned(kind).map(tensorOf));
  owned("parameter").forEach(({ decay, ...range }, i) => {
    const weightDecay = decay ? options.weightDecay : 0;
    adamw(tensorOf(range), gradients[i], expAvg[i], expAvgSq[i], hyper, outputs.clip, { ...options, weightDecay });
  });
  for (const gradient of variablesOf(parts?.others ?? [], "gradient")) zero(tensorOf(gradient));
  zero(loss);
  return { graph, outputs };
}

/** What an update's program is run with. In f16 the GPU counts the updates that AdamW corrects its averages for. */
export function updateInputs(
  { optimizer: { beta1, beta2 }, precision }: StepOptions,
  { learningRate, update }: { readonly learningRate: number; readonly update: number },
): Readonly<Record<string, Float32Array>> {
  if (precision === "f16") return { learning_rate: new Float32Array([learningRate]) };
  return { hyper: new Float32Array([learningRate, 1 - beta1 ** update, Math.sqrt(1 - beta2 ** update), 0]) };
}

/** The loss of a microbatch, without dropout. */
export function evaluateGraph({ architecture, config }: Shape, { rows, precision = "f32" }: StepOptions): DrawnGraph {
  const graph = new Graph();
  const context = denseContext(graph, rows, { longest: config.n_positions });
  const { loss } = evaluation(graph, architecture, context, config.vocab_size, formatsOf(precision));
  return { graph, outputs: { loss } };
}

/** The copies of parameters that products read, made anew. @returns null where products read the parameters themselves. */
export function refreshGraph({ declared }: Shape, precision: Precision): DrawnGraph | null {
  const graph = new Graph();
  refreshed(graph, declared, precision);
  return graph.calls.length === 0 ? null : { graph, outputs: {} };
}
