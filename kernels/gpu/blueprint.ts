/**
 * All of a program that can be known without a device: its steps, where values lie, its textures, inputs and uniforms, and
 * so the bytes it will hold. It knows no op.
 */
import {
  byteLength,
  type Capabilities,
  type Dispatch,
  formatType,
  type Graph,
  type Leaf,
  type Offer,
  type Scratch,
  type Tensor,
} from "./graph.ts";
import { fits, type Layout } from "./layout.ts";
import { type Plan, plan, schedule, type Step } from "./plan.ts";
import { type Event, planTextures, type Region, regions, textureBytes, type TexturePlan } from "./textures.ts";

export interface BlueprintOptions {
  /** Textures of variables that the program doesn't write stay from run to run, in the store: for serving. */
  readonly keep?: boolean;
}

export interface Blueprint {
  readonly steps: readonly Step[];
  readonly plan: Plan;
  readonly textures: TexturePlan;
  /** Input leaves by name. */
  readonly inputs: ReadonlyMap<string, Tensor>;
  /** Bytes of all uniforms; 0 where there are none. */
  readonly uniforms: number;
  readonly events: readonly Event[];
  regionOf(tensor: Tensor | Scratch): Region;
}

/** Calls that outputs and writes to variables need, in order, with their candidates. */
export function offers(graph: Graph, outputs: readonly Tensor[], capabilities: Capabilities): Offer[] {
  return schedule(graph.calls, outputs).map((call) => ({ call, candidates: call.op.kernels(call, capabilities) }));
}

/**
 * Draws a program whose kernels are chosen.
 *
 * @throws RangeError for a variable that the layout lacks or holds in another size.
 */
export function draw(
  graph: Graph,
  outputs: readonly Tensor[],
  steps: readonly Step[],
  layout: Layout,
  { limits }: Pick<Capabilities, "limits">,
  { keep = false }: BlueprintOptions = {},
): Blueprint {
  const leaves = graph.leaves().map((tensor) => ({ tensor, leaf: tensor.source as Leaf }));
  for (const { tensor, leaf } of leaves) if (leaf.kind === "variable") check(tensor, leaf.name, layout);
  const planned = plan(steps, outputs);
  const regionOf = regions(planned, layout);
  const events = steps.flatMap(({ call, dispatches }): Event[] => [
    ...(planned.copies.get(call) ?? []).map(({ to }) => ({ copied: to })),
    ...dispatches,
  ]);
  const dispatches = steps.flatMap((step) => step.dispatches);
  return {
    steps,
    plan: planned,
    textures: planTextures(events, regionOf, keep),
    inputs: new Map(leaves.filter(({ leaf }) => leaf.kind === "input").map(({ tensor, leaf }) => [leaf.name, tensor])),
    uniforms: dispatches.reduce((sum, { uniforms }) => sum + uniformBytes(uniforms, limits), 0),
    events,
    regionOf,
  };
}

function check(tensor: Tensor, name: string, layout: Layout): void {
  const variable = layout.get(name);
  if (variable === undefined) throw new RangeError(`Cannot compile: the store has no variable ${name}`);
  if (!fits(variable, tensor)) {
    throw new RangeError(`Cannot compile: ${name} is ${formatType(variable)} in the store, ${formatType(tensor)} here`);
  }
}

/** Bytes that a dispatch's uniforms take in the buffer of all: each starts where a binding may. */
export function uniformBytes(uniforms: Dispatch["uniforms"], limits: Capabilities["limits"]): number {
  if (uniforms === undefined) return 0;
  const step = limits.minUniformBufferOffsetAlignment;
  return Math.ceil(Math.max(16, uniforms.length * 4) / step) * step;
}

/** Bytes of a buffer as a device makes it. */
export function bufferBytes(size: number): number {
  return Math.max(16, Math.ceil(size / 16) * 16);
}

/** Bytes a program holds by what they are for. What stands in the store isn't counted. */
export interface ProgramBytes {
  readonly slots: number;
  readonly textures: number;
  readonly inputs: number;
  readonly uniforms: number;
  readonly total: number;
}

export function bytesOf({ plan, textures, inputs, uniforms }: Blueprint): ProgramBytes {
  const sum = (sizes: readonly number[]) => sizes.reduce((total, size) => total + size, 0);
  const parts = {
    slots: sum(plan.slots.map(bufferBytes)),
    textures: sum(textures.shapes.map(textureBytes)),
    inputs: sum([...inputs.values()].map((tensor) => bufferBytes(byteLength(tensor)))),
    uniforms: uniforms === 0 ? 0 : bufferBytes(uniforms),
  };
  return { ...parts, total: sum(Object.values(parts)) };
}
