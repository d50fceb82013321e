/** Parameters: named, shaped and initialised where the model uses them. It knows no memory; a store gives them some. */
import type { Graph, Tensor } from "../kernels/gpu/graph.ts";

/** How a new parameter starts: normal numbers of mean 0, or one value. */
export type Init = { readonly std: number } | { readonly value: number };

export const zeros: Init = { value: 0 };
export const ones: Init = { value: 1 };

/** A parameter as its model declares it. */
export interface Parameter {
  /** Its name in a Hugging Face checkpoint. */
  readonly name: string;
  readonly shape: readonly number[];
  /** The shape in memory: the first dimension may be padded with zero rows. */
  readonly padded: readonly number[];
  readonly init: Init;
  /** Weight decay goes to tensors of two and more dimensions. */
  readonly decay: boolean;
}

/** Where a model declares its parameters while its graph is built. */
export interface Scope {
  /** The parameter `name`; its rows are padded to a multiple of `padRows`. */
  parameter(name: string, shape: readonly number[], init: Init, padRows?: number): Tensor;
  /** The same scope under a longer prefix. */
  within(prefix: string): Scope;
}

/** A scope that declares into `graph` and collects the declarations in order. */
export function createScope(graph: Graph, declared: Map<string, Parameter> = new Map(), prefix = ""): Scope {
  return {
    parameter(name, shape, init, padRows = 1) {
      const full = prefix + name;
      const padded = [Math.ceil(shape[0] / padRows) * padRows, ...shape.slice(1)];
      declared.set(full, { name: full, shape: [...shape], padded, init, decay: shape.length >= 2 });
      return graph.variable(full, padded);
    },
    within: (inner) => createScope(graph, declared, `${prefix}${inner}.`),
  };
}
