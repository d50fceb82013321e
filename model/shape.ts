/** What is known of a model before any memory is: its architecture and the parameters it declares. It knows no device. */
import { Graph } from "../kernels/gpu/graph.ts";
import { type Architecture, denseContext } from "./context.ts";
import { gpt2 } from "./gpt2.ts";
import type { Gpt2Config } from "./gpt2_config.ts";
import { parametersOf } from "./objective.ts";
import type { Parameter } from "./scope.ts";

export interface Shape {
  readonly config: Gpt2Config;
  readonly architecture: Architecture;
  /** Parameters in the order the model uses them. */
  readonly declared: readonly Parameter[];
}

/** The GPT-2 that a config.json describes. */
export function shapeOf(config: Gpt2Config): Shape {
  const architecture = gpt2(config);
  const graph = new Graph();
  return { config, architecture, declared: parametersOf(architecture, graph, denseContext(graph, 1)) };
}
