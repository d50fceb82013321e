/** The training objective: next-token cross-entropy and the gradients of all parameters, as one graph. It knows no optimizer. */
import { differentiate } from "../kernels/gpu/grad.ts";
import type { Graph, Tensor } from "../kernels/gpu/graph.ts";
import { linearCrossEntropy, linearCrossEntropyWithGradients } from "../kernels/linear_cross_entropy.ts";
import type { Architecture, Context } from "./context.ts";
import { createScope, type Parameter } from "./scope.ts";

export interface Objective {
  /** scale · Σ -log p(target) over rows whose target isn't -100. (1) */
  readonly loss: Tensor;
  readonly parameters: readonly Parameter[];
  /** Gradients in the parameters' order and padded shapes. */
  readonly gradients: readonly Tensor[];
}

/**
 * Loss and gradients in one pass. Graph inputs besides the context's: `targets` (N) i32 with -100 where there is none,
 * `scale` (1) f32. `into` names a running sum for each parameter's gradient; without it gradients are values of their own.
 */
export function objective(
  graph: Graph,
  architecture: Architecture,
  context: Context,
  vocabulary: number,
  into?: (parameter: Parameter) => Tensor,
): Objective {
  const declared = new Map<string, Parameter>();
  const scope = createScope(graph, declared);
  const hidden = architecture.hidden(scope, context);
  const head = architecture.unembed(scope);
  const parameters = [...declared.values()];
  const variables = parameters.map(({ name, padded }) => graph.variable(name, padded));
  const sums = parameters.map((parameter) => into?.(parameter));
  const tied = variables.indexOf(head);
  const { loss, dhidden, dweight } = linearCrossEntropyWithGradients(hidden, head, ...targetsOf(graph, context), {
    vocabulary,
    into: sums[tied],
  });
  sums[tied] = dweight;
  const gradients = differentiate([{ tensor: hidden, gradient: dhidden }], variables, sums);
  return { loss, parameters, gradients };
}

/** The loss alone, with each row's own (N). */
export function evaluation(
  graph: Graph,
  architecture: Architecture,
  context: Context,
  vocabulary: number,
): { readonly loss: Tensor; readonly rowLosses: Tensor } {
  const scope = createScope(graph);
  const hidden = architecture.hidden(scope, context);
  return linearCrossEntropy(hidden, architecture.unembed(scope), ...targetsOf(graph, context), { vocabulary });
}

/** Every parameter the architecture declares, found by building its graph. */
export function parametersOf(architecture: Architecture, graph: Graph, context: Context): readonly Parameter[] {
  const declared = new Map<string, Parameter>();
  const scope = createScope(graph, declared);
  architecture.hidden(scope, context);
  architecture.unembed(scope);
  return [...declared.values()];
}

function targetsOf(graph: Graph, context: Context): [Tensor, Tensor] {
  return [graph.input("targets", context.tokens.shape, "i32"), graph.input("scale", [1])];
}
