/**
 * What a run will hold and do, known before anything is made: bytes by kind, operations and launches of a step. Pure: it
 * plans the same programs that training compiles, on an adapter's capabilities alone.
 */
import { bufferBytes, bytesOf, draw, offers } from "../kernels/gpu/blueprint.ts";
import { STAGING_BYTES } from "../kernels/gpu/readback.ts";
import { type Capabilities, Graph, type Offer } from "../kernels/gpu/graph.ts";
import { Layout } from "../kernels/gpu/layout.ts";
import { type Work, workOf } from "../kernels/gpu/work.ts";
import { Pool } from "../kernels/gpu/workspace.ts";
import { nextLogits } from "../model/plain_generator.ts";
import { samplingGraph } from "../model/sampling.ts";
import { variableEntry } from "../model/scope.ts";
import type { Shape } from "../model/shape.ts";
import { exchangeBytes } from "./exchange.ts";
import {
  type DrawnGraph,
  evaluateGraph,
  microstepGraph,
  refreshGraph,
  stepEntries,
  type StepOptions,
  updateGraph,
} from "./graphs.ts";
import type { Wire } from "./job.ts";
import { shardedParts, viewParts } from "./parts.ts";

/** Bytes on the device by what they are for. */
export interface MemoryUse {
  /** The parameters themselves. */
  readonly weights: number;
  readonly gradients: number;
  /** AdamW's two averages. */
  readonly moments: number;
  /** Parameters in the format that products read, where it is another. */
  readonly copies: number;
  /** Buffers that hold values from the forward to the backward pass. */
  readonly activations: number;
  /** All other short-lived values, scratch and textures. */
  readonly workspace: number;
  /** What is written before a run and read after it: inputs, uniforms, staging. */
  readonly inputs: number;
}

export interface Footprint {
  readonly memory: MemoryUse;
  readonly total: number;
  /** One microstep; an update is one more program. */
  readonly microstep: Work;
  readonly update: Work;
}

/** Which rank of how many shares updates, and how. */
export interface PlannedSharing {
  readonly rank: number;
  readonly size: number;
  readonly wire: Wire;
  readonly shard: boolean;
}

/** Picks a candidate of each offer, as the device that will train does. Default: each op's own best guess. */
export type Choose = (offers: readonly Offer[]) => Promise<readonly number[]>;

/** The footprint of training a model of this shape; samples and evaluations in between count too. */
export async function footprint(
  shape: Shape,
  options: StepOptions,
  capabilities: Capabilities,
  choose: Choose = (offered) => Promise.resolve(offered.map(() => 0)),
  sharing?: PlannedSharing,
): Promise<Footprint> {
  const { precision = "f32" } = options;
  const layout = new Layout(capabilities.limits);
  layout.allocate("parameter", shape.declared.map((parameter) => variableEntry(parameter, {})));
  const parts = sharing?.shard ? shardedParts(layout.ranges("parameter"), sharing) : undefined;
  for (const [kind, entries] of stepEntries(shape, precision, parts?.own)) layout.allocate(kind, entries);
  if (parts !== undefined) viewParts(layout, parts);
  const drawn = async ({ graph, outputs }: DrawnGraph) => {
    const roots = Object.values(outputs);
    const offered = offers(graph, roots, capabilities);
    const chosen = await choose(offered);
    const steps = offered.map(({ call, candidates }, i) => ({ call, dispatches: candidates[chosen[i]] }));
    return draw(graph, roots, steps, layout, capabilities);
  };
  const microstep = await drawn(microstepGraph(shape, options.rows, options));
  const turns = [microstep, await drawn(evaluateGraph(shape, options)), await drawn(samplerGraph(shape))];
  const pool = new Pool();
  for (const blueprint of turns) pool.take(blueprint);
  const update = await drawn(updateGraph(layout, options, parts));
  const refresh = refreshGraph(shape, precision);
  const alone = [update, ...refresh === null ? [] : [await drawn(refresh)]].map(bytesOf);
  const named = ["parameter", "gradient", "exp_avg", "exp_avg_sq", "copy"];
  const memory: MemoryUse = {
    weights: layout.bytes("parameter"),
    gradients: layout.bytes("gradient"),
    moments: layout.bytes("exp_avg") + layout.bytes("exp_avg_sq"),
    copies: layout.bytes("copy"),
    activations: pool.bytes.activations,
    workspace: pool.bytes.scratch + sum(alone.map(({ slots, textures }) => slots + textures)) +
      layout.bytes() - sum(named.map((kind) => layout.bytes(kind))),
    inputs: sum([...turns.map(bytesOf), ...alone].map(({ inputs, uniforms }) => inputs + uniforms)) +
      bufferBytes(STAGING_BYTES) + (sharing === undefined ? 0 : exchangeBytes(sharing.wire)),
  };
  return {
    memory,
    total: sum(Object.values(memory)),
    microstep: workOf(microstep.steps),
    update: workOf(update.steps),
  };
}

/** What the plain generator runs when training samples. */
function samplerGraph(shape: Shape): DrawnGraph {
  const graph = new Graph();
  const wishes = { adjust: false, top: false };
  return { graph, outputs: samplingGraph(graph, nextLogits(graph, shape, {}), shape.config.vocab_size, wishes) };
}

const ROWS: readonly (keyof MemoryUse)[] = [
  "weights",
  "gradients",
  "moments",
  "copies",
  "activations",
  "workspace",
  "inputs",
];

/** A table, a line each kind. */
export function formatMemory({ memory, total }: Footprint): string {
  const line = (name: string, bytes: number) => `  ${name.padEnd(12)}${formatMegabytes(bytes).padStart(12)}`;
  return [
    `${"memory".padEnd(14)}${"MB".padStart(12)}`,
    ...ROWS.filter((name) => memory[name] > 0).map((name) => line(name, memory[name])),
    line("total", total),
  ].join("\n");
}

function formatMegabytes(bytes: number): string {
  return (bytes / 1e6).toLocaleString("en-US", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, number) => total + number, 0);
}
