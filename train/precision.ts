/**
 * Mixed precision (Micikevicius et al. 2018): parameters, moments and gradients stay f32; products with weights take both
 * operands in a half format. It knows no schedule: copies of the weights for products, and the loss scale that f16 needs.
 */
import { cast, type FloatType } from "../kernels/cast.ts";
import type { Graph, Tensor } from "../kernels/gpu/graph.ts";
import type { Entry } from "../kernels/gpu/layout.ts";
import { LOSS_SCALE, type LossScaleOptions, unscale, type Unscaled } from "../kernels/loss_scale.ts";
import type { Model } from "../model/model.ts";
import { copyEntry, type Formats, matrixOf, type Parameter, variableOf } from "../model/scope.ts";

/** What products with weights take. f16 has bf16's size, more digits and a small range: its losses are scaled. */
export type Precision = FloatType;

/** Where the dynamic loss scale of f16 stands. */
export interface LossScaling {
  readonly scale: number;
  /** Updates applied since the scale last changed or an update was left out. */
  readonly streak: number;
  readonly applied: number;
  /** Updates left out, as a gradient wasn't finite. */
  readonly skipped: number;
}

/** Where the loss scale starts. */
export const FIRST_SCALING: LossScaling = { scale: LOSS_SCALE.first, streak: 0, applied: 0, skipped: 0 };

const SCALE: Entry = { name: "loss_scale", shape: [1], dtype: "f32" };
const COUNTS: Entry = { name: "loss_scale counts", shape: [4], dtype: "f32" };

/** How a model's graph is built in training. */
export function formatsOf(precision: Precision): Formats {
  return precision === "f32" ? {} : { operands: precision };
}

/** Variables that a precision needs beside parameters, gradients and moments, by kind. */
export function precisionEntries(
  declared: readonly Parameter[],
  precision: Precision,
): (readonly [kind: string, Entry[]])[] {
  const copies = declared.map((parameter) => copyEntry(parameter, formatsOf(precision)));
  const entries = copies.filter((entry) => entry !== undefined);
  const made: (readonly [string, Entry[]])[] = entries.length > 0 ? [["copy", entries]] : [];
  return precision === "f16" ? [...made, ["loss scale", [SCALE, COUNTS]]] : made;
}

/** Casts the parameters to the copies that products read, where they read any. */
export function refreshed(graph: Graph, declared: readonly Parameter[], precision: Precision): void {
  const formats = formatsOf(precision);
  for (const parameter of declared) {
    const entry = copyEntry(parameter, formats);
    if (entry === undefined) continue;
    cast(variableOf(graph, parameter, formats), entry.dtype as FloatType, matrixOf(graph, parameter, formats));
  }
}

/** What a loss and its gradients are multiplied by. @returns undefined where nothing is. */
export function lossScale(graph: Graph, precision: Precision): Tensor | undefined {
  return precision === "f16" ? graph.variable(SCALE.name, SCALE.shape) : undefined;
}

/** Takes the scale out of a loss and a norm, and decides on the next one. Graph input: `learning_rate` (1). */
export function unscaled(
  squaredNorm: Tensor,
  loss: Tensor,
  options: Omit<LossScaleOptions, "growthInterval">,
): Unscaled {
  const { graph } = loss;
  const [scale, counts] = [SCALE, COUNTS].map(({ name, shape }) => graph.variable(name, shape));
  const learningRate = graph.input("learning_rate", [1]);
  return unscale(squaredNorm, loss, learningRate, scale, counts, {
    ...options,
    growthInterval: LOSS_SCALE.growthInterval,
  });
}

/** @param buffers what a program or the store gives for scale and counts. */
export function lossScalingOf(buffers: readonly ArrayBuffer[]): LossScaling {
  const [[scale], [streak, applied, skipped]] = buffers.map((buffer) => new Float32Array(buffer));
  return { scale, streak, applied, skipped };
}

export async function readLossScaling({ store }: Model): Promise<LossScaling> {
  return lossScalingOf([await store.read(SCALE.name), await store.read(COUNTS.name)]);
}

export function writeLossScaling({ store }: Model, { scale, streak, applied, skipped }: LossScaling): void {
  store.write(SCALE.name, Float32Array.of(scale));
  store.write(COUNTS.name, Float32Array.of(streak, applied, skipped, 0));
}
