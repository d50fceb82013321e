/** The training objective: next-token cross-entropy and the gradients of all parameters, as one graph. It knows no optimizer. */
import { differentiate } from "../kernels/gpu/grad.ts";
import type { Graph, Tensor } from "../kernels/gpu/graph.ts";
import { linearCrossEntropy, linearCrossEntropyWithGradients } from "../kernels/linear_cross_entropy.ts";
import { scaleBy } from "../kernels/reduce.ts";
import type { Architecture, Context } from "./context.ts";
import { asTensor, operand } from "./linear.ts";
import { copyEntry, createScope, type Formats, matrixOf, type Parameter, variableOf } from "./scope.ts";

export interface Objective {
  /** scale · Σ -log p(target) over rows whose target isn't -100. (1) */
  readonly loss: Tensor;
  readonly parameters: readonly Parameter[];
  /** Gradients in the parameters' order and padded shapes. */
  readonly gradients: readonly Tensor[];
}

export interface ObjectiveOptions {
  readonly formats?: Formats;
  /** The running sum that a parameter's gradient is added to; without it gradients are values of their own. */
  readonly into?: (parameter: Parameter) => Tensor;
  /** (1): loss and gradients are multiplied by it, so that gradients stay within f16's range. */
  readonly lossScale?: Tensor;
}

/**
 * Loss and gradients in one pass. Graph inputs besides the context's: `targets` (N) i32 with -100 where there is none,
 * `scale` (1) f32.
 */
export function objective(
  graph: Graph,
  architecture: Architecture,
  context: Context,
  vocabulary: number,
  { formats = {}, into, lossScale }: ObjectiveOptions = {},
): Objective {
  const declared = new Map<string, Parameter>();
  const scope = createScope(graph, formats, declared);
  const hidden = operand(architecture.hidden(scope, context), formats);
  const head = asTensor(architecture.unembed(scope));
  const parameters = [...declared.values()];
  const tied = parameters.findIndex((parameter) => matrixOf(graph, parameter, formats) === head);
  const sums = parameters.map((parameter) => into?.(parameter));
  const [targets, scale] = targetsOf(graph, context);
  const weight = lossScale === undefined ? scale : scaleBy(scale, lossScale);
  const { loss, dhidden, dweight } = linearCrossEntropyWithGradients(hidden, head, targets, weight, {
    vocabulary,
    into: sums[tied],
  });
  sums[tied] = dweight;
  const read = parameters.map((parameter, i) =>
    i === tied ? variableOf(graph, parameter, formats) : leafOf(graph, parameter, formats)
  );
  const gradients = differentiate([{ tensor: hidden, gradient: dhidden }], read, sums);
  return { loss, parameters, gradients };
}

/** What a parameter's gradient is taken of: all of its readers must read the same tensor. */
function leafOf(graph: Graph, parameter: Parameter, formats: Formats): Tensor {
  if (parameter.readBy === "others") return variableOf(graph, parameter, formats);
  if (parameter.readBy === "both" && copyEntry(parameter, formats) !== undefined) {
    throw new RangeError(`Cannot differentiate ${parameter.name}: it is read both itself and as a copy`);
  }
  return matrixOf(graph, parameter, formats);
}

/** The loss alone, with each row's own (N). */
export function evaluation(
  graph: Graph,
  architecture: Architecture,
  context: Context,
  vocabulary: number,
  formats: Formats = {},
): { readonly loss: Tensor; readonly rowLosses: Tensor } {
  const scope = createScope(graph, formats);
  const hidden = operand(architecture.hidden(scope, context), formats);
  return linearCrossEntropy(hidden, asTensor(architecture.unembed(scope)), ...targetsOf(graph, context), {
    vocabulary,
  });
}

/** Every parameter the architecture declares, found by building its graph. */
export function parametersOf(architecture: Architecture, graph: Graph, context: Context): readonly Parameter[] {
  const declared = new Map<string, Parameter>();
  const scope = createScope(graph, {}, declared);
  architecture.hidden(scope, context);
  architecture.unembed(scope);
  return [...declared.values()];
}

function targetsOf(graph: Graph, context: Context): [Tensor, Tensor] {
  return [graph.input("targets", context.tokens.shape, "i32"), graph.input("scale", [1])];
}
