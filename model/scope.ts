/** Parameters: named, shaped and initialised where the model uses them. It knows no memory; a store gives them some. */
import type { FloatType } from "../kernels/cast.ts";
import type { Graph, Tensor } from "../kernels/gpu/graph.ts";
import type { Entry } from "../kernels/gpu/store.ts";
import type { IntegerFormat } from "../kernels/quantize.ts";
import { type Quantized, quantizedTypes } from "../kernels/quantized.ts";

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
export type Matrix = Tensor | Quantized;

/** How weights may stand in memory. */
export type WeightFormat = FloatType | IntegerFormat;
export const weightFormats: readonly WeightFormat[] = ["f32", "bf16", "f16", "int8", "int4"];

export function isFloatFormat(format: WeightFormat): format is FloatType {
  return format !== "int8" && format !== "int4";
}

/** Number formats of a model's weights. */
export interface Formats {
  /**
   * How parameters of two and more dimensions stand in memory; the others are f32. Of int8 and int4, only what products read
   * stands so, in the layout for serving, and a table that is read by rows too as int8. Default: f32.
   */
  readonly weights?: WeightFormat;
  /**
   * Whether matrices that only products read stand transposed, (out, in): with few rows, those stream through fastest.
   * Such models aren't trained.
   */
  readonly serving?: boolean;
  /**
   * What both operands of a product with a weight are cast to: mixed precision. Products then read copies that stand beside
   * the parameters. Default: operands as they are.
   */
  readonly operands?: FloatType;
}

/** Name, shape, init and rows to pad to. */
export type Declaration = Parameters<Scope["parameter"]>;

/** Where a model declares its parameters while its graph is built. */
export interface Scope {
  readonly formats: Formats;
  /** The parameter `name` as it stands in memory; its rows are padded to a multiple of `padRows`. */
  parameter(name: string, shape: readonly number[], init: Init, padRows?: number): Tensor;
  /** The same parameter in the format that products read. */
  matrix(name: string, shape: readonly number[], init: Init): Matrix;
  /** A parameter that is read by its rows and, as the head, by products: as the given reader sees it. */
  table(declaration: Declaration, reader: Exclude<Parameter["readBy"], "both">): Matrix;
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
    [name, shape, init, padRows = 1]: Declaration,
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
    matrix: (...declaration) => {
      const parameter = declare(declaration, "products");
      return quantizedOf(graph, parameter, formats, "products") ?? matrixOf(graph, parameter, formats);
    },
    table: (declaration, reader) => {
      const parameter = declare(declaration, reader);
      const known = quantizedOf(graph, parameter, formats, "both");
      return known ?? (reader === "products" ? tableOf : variableOf)(graph, parameter, formats);
    },
    within: (inner) => createScope(graph, formats, declared, `${prefix}${inner}.`),
  };
}

/** The parameter itself, in the store. */
export function variableOf(graph: Graph, parameter: Parameter, formats: Formats): Tensor {
  const { name, shape, dtype } = variableEntry(parameter, formats);
  return graph.variable(name, shape, dtype);
}

/** What products read of a parameter: itself, or its copy in the operands' format. */
export function matrixOf(graph: Graph, parameter: Parameter, formats: Formats): Tensor {
  const { padded } = parameter;
  return tableOf(graph, formats.serving ? { ...parameter, padded: padded.toReversed() } : parameter, formats);
}

function tableOf(graph: Graph, parameter: Parameter, formats: Formats): Tensor {
  const { name, shape, dtype } = copyEntry(parameter, formats) ?? variableEntry(parameter, formats);
  return graph.variable(name, shape, dtype);
}

function quantizedOf(
  graph: Graph,
  parameter: Parameter,
  formats: Formats,
  readBy: Parameter["readBy"],
): Quantized | undefined {
  const entries = quantizedEntries({ ...parameter, readBy }, formats);
  if (entries === undefined) return undefined;
  const [values, scales] = entries.map(({ name, shape, dtype }) => graph.variable(name, shape, dtype));
  return { values, scales };
}

/** The integer format in which a parameter stands, where it does. */
export function integerFormat({ readBy, padded }: Parameter, { weights = "f32" }: Formats): IntegerFormat | undefined {
  if (isFloatFormat(weights) || readBy === "others" || padded.length < 2) return undefined;
  return readBy === "both" ? "int8" : weights;
}

/** The variables that hold an integer parameter: values, then scales. */
function quantizedEntries(parameter: Parameter, formats: Formats): readonly [Entry, Entry] | undefined {
  const format = integerFormat(parameter, formats);
  if (format === undefined) return undefined;
  const { name, padded, readBy, decay } = parameter;
  const { values, scales } = quantizedTypes(readBy === "products" ? padded.toReversed() : padded, format, "rows");
  return [{ name, decay, ...values }, { name: scalesName(name), decay, ...scales }];
}

/** The variable with the scales of an integer parameter. */
export function scalesName(name: string): string {
  return `scales/${name}`;
}

/** Whether a parameter stands transposed. */
export function isTransposed({ readBy, padded }: Parameter, { weights = "f32", serving }: Formats): boolean {
  return readBy === "products" && padded.length === 2 && (serving === true || !isFloatFormat(weights));
}

/** The variables that hold a parameter; `readBy` must tell of the whole model. */
export function entriesOf(parameter: Parameter, formats: Formats): readonly Entry[] {
  const { padded } = parameter;
  const placed = isTransposed(parameter, formats) ? { ...parameter, padded: padded.toReversed() } : parameter;
  return quantizedEntries(parameter, formats) ?? [variableEntry(placed, formats)];
}

/** The variable that holds a parameter that is no integer one. */
export function variableEntry({ name, padded, decay }: Parameter, { weights = "f32" }: Formats): Entry {
  return { name, shape: padded, dtype: padded.length >= 2 && isFloatFormat(weights) ? weights : "f32", decay };
}

/** The variable that holds a parameter's copy for products, where they read one. */
export function copyEntry(parameter: Parameter, { weights = "f32", operands }: Formats): Entry | undefined {
  if (operands === undefined || operands === weights || parameter.readBy === "others") return undefined;
  return { name: `copy/${parameter.name}`, shape: parameter.padded, dtype: operands };
}
