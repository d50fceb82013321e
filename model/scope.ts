/** Parameters: named, shaped and initialised where the model uses them. It knows no memory; a store gives them some. */
import type { FloatType } from "../kernels/cast.ts";
import type { Graph, Tensor } from "../kernels/gpu/graph.ts";
import type { Entry } from "../kernels/gpu/store.ts";

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
  /** Who reads it: matrix products, other operations, or both. */
  readonly readBy: "products" | "others" | "both";
}

/** A weight as matrix products read it. */
export type Matrix = Tensor;

/** Number formats of a model's weights. */
export interface Formats {
  /** How parameters of two and more dimensions stand in memory; the others are f32. Default: f32. */
  readonly weights?: FloatType;
  /**
   * What both operands of a product with a weight are cast to: mixed precision. Products then read copies that stand beside
   * the parameters. Default: operands as they are.
   */
  readonly operands?: FloatType;
}

/** Where a model declares its parameters while its graph is built. */
export interface Scope {
  readonly formats: Formats;
  /** The parameter `name` as it stands in memory; its rows are padded to a multiple of `padRows`. */
  parameter(name: string, shape: readonly number[], init: Init, padRows?: number): Tensor;
  /** The same parameter in the format that products read. */
  matrix(name: string, shape: readonly number[], init: Init, padRows?: number): Matrix;
  /** The same scope under a longer prefix. */
  within(prefix: string): Scope;
}

/** A scope that declares into `graph` and collects the declarations in order. */
export function createScope(
  graph: Graph,
  formats: Formats = {},
  declared: Map<string, Parameter> = new Map(),
  prefix = "",
): Scope {
  const declare = (
    [name, shape, init, padRows = 1]: Parameters<Scope["parameter"]>,
    reader: Parameter["readBy"],
  ): Parameter => {
    const full = prefix + name;
    const padded = [Math.ceil(shape[0] / padRows) * padRows, ...shape.slice(1)];
    const readBy = (declared.get(full)?.readBy ?? reader) === reader ? reader : "both";
    const parameter: Parameter = { name: full, shape: [...shape], padded, init, decay: shape.length >= 2, readBy };
    declared.set(full, parameter);
    return parameter;
  };
  return {
    formats,
    parameter: (...declaration) => variableOf(graph, declare(declaration, "others"), formats),
    matrix: (...declaration) => matrixOf(graph, declare(declaration, "products"), formats),
    within: (inner) => createScope(graph, formats, declared, `${prefix}${inner}.`),
  };
}

/** The parameter itself, in the store. */
export function variableOf(graph: Graph, parameter: Parameter, formats: Formats): Tensor {
  const { name, shape, dtype } = variableEntry(parameter, formats);
  return graph.variable(name, shape, dtype);
}

/** What products read of a parameter: itself, or its copy in the operands' format. */
export function matrixOf(graph: Graph, parameter: Parameter, formats: Formats): Matrix {
  const { name, shape, dtype } = copyEntry(parameter, formats) ?? variableEntry(parameter, formats);
  return graph.variable(name, shape, dtype);
}

/** The variable that holds a parameter. */
export function variableEntry({ name, padded, decay }: Parameter, { weights = "f32" }: Formats): Entry {
  return { name, shape: padded, dtype: padded.length >= 2 ? weights : "f32", decay };
}

/** The variable that holds a parameter's copy for products, where they read one. */
export function copyEntry(parameter: Parameter, { weights = "f32", operands = weights }: Formats): Entry | undefined {
  if (operands === weights || parameter.readBy === "others") return undefined;
  return { name: `copy/${parameter.name}`, shape: parameter.padded, dtype: operands };
}
