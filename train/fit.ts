/**
 * Whether a run fits the memory there is, and what would make it fit: smaller microbatches, values recomputed, products in
 * halves. Pure but for the planning it asks for; it opens no device.
 */
import type { Capabilities } from "../kernels/gpu/graph.ts";
import { UserError } from "../model/errors.ts";
import { recomputations } from "../model/context.ts";
import type { Shape } from "../model/shape.ts";
import type { Config } from "./config.ts";
import { type Footprint, footprint } from "./footprint.ts";
import type { StepOptions } from "./graphs.ts";

/** Memory a run may take, and who says so. */
export interface Limit {
  readonly bytes: number;
  readonly reason: string;
}

/** Beside its device memory a process holds Deno, the driver and compiled shaders: 0.29 GB measured on Mesa's CPU driver. */
const PROCESS_BYTES = 3e8;

/** How many ways out a refusal names. */
const WAYS = 3;

type Planned = Pick<Config, "microBatch" | "context" | "batchTokens" | "recompute" | "precision" | "dropout">;
type Optimizing = Pick<Config, "beta1" | "beta2" | "eps" | "weightDecay" | "clip">;

/** How a configuration's step is compiled. */
export function stepOptions(config: Planned & Optimizing): StepOptions {
  const { beta1, beta2, eps, weightDecay, clip, microBatch, context, dropout, recompute, precision } = config;
  const optimizer = { beta1, beta2, eps, weightDecay, clip };
  return { rows: microBatch * context, optimizer, dropout: dropout > 0, recompute, precision };
}

/** The limit that --memory sets, else on CPU drivers what the machine has left; null where only allocating will tell. */
export function limitOf(gigabytes: number, cpu: boolean, available: number | null): Limit | null {
  if (gigabytes > 0) return { bytes: gigabytes * 1e9, reason: `--memory ${gigabytes}` };
  if (!cpu || available === null) return null;
  const bytes = available - PROCESS_BYTES;
  return {
    bytes,
    reason: `the machine has ${formatGigabytes(available)}, ${formatGigabytes(PROCESS_BYTES)} go elsewhere`,
  };
}

/** @throws UserError with ways out where the run is larger than its limit. */
export async function refuseTooLarge(
  planned: Footprint,
  limit: Limit | null,
  shape: Shape,
  config: Planned & Optimizing,
  capabilities: Capabilities,
): Promise<void> {
  if (limit === null || planned.total <= limit.bytes) return;
  const has = `${formatGigabytes(Math.max(0, limit.bytes))} (${limit.reason})`;
  throw await tooLarge(`Cannot train in ${has}: this run holds ${formatGigabytes(planned.total)}`, {
    limit: limit.bytes,
    shape,
    config,
    capabilities,
  });
}

export interface Seeking {
  /** Bytes wanted at most. */
  readonly limit: number;
  readonly shape: Shape;
  readonly config: Planned & Optimizing;
  readonly capabilities: Capabilities;
}

/** The error of a run that can't fit, with the cheapest ways out and what each would hold. */
export async function tooLarge(message: string, seeking: Seeking): Promise<UserError> {
  const ways = await waysOut(seeking);
  const fitting = ways.some(({ total }) => total <= seeking.limit);
  const list = ways.map(({ flags, total }) => `${flags} (${formatGigabytes(total)})`).join(", ");
  const next = ways.length === 0
    ? "; choose a smaller model"
    : `; ${fitting ? "try" : "nothing fits; smallest are"} ${list}`;
  return new UserError(message + next);
}

/** A change of flags, and what the run would then hold and compute. */
interface Way {
  readonly flags: string;
  readonly total: number;
  /** Operations a token. */
  readonly flops: number;
}

/** Changes that make a run smaller: those that fit first, of these those that compute least. */
async function waysOut(seeking: Seeking): Promise<Way[]> {
  const { config, limit } = seeking;
  const now = await measured(seeking, "", {});
  const stronger = recomputations.slice(recomputations.indexOf(config.recompute) + 1);
  const ways = [
    ...await smallerBatch(seeking, {}, ""),
    ...await Promise.all(stronger.map((recompute) => measured(seeking, `--recompute ${recompute}`, { recompute }))),
    ...(config.precision ?? "f32") === "f32"
      ? [await measured(seeking, "--precision bf16", { precision: "bf16" })]
      : [],
  ];
  if (!ways.some(({ total }) => total <= limit)) {
    ways.push(...await smallerBatch(seeking, { recompute: "block" }, " --recompute block"));
  }
  const fits = ({ total }: Way) => total <= limit ? 0 : 1;
  const order = (a: Way, b: Way) =>
    fits(a) === 0 && fits(b) === 0 ? a.flops - b.flops || b.total - a.total : a.total - b.total;
  return ways.filter(({ total }) => total < now.total).sort((a, b) => fits(a) - fits(b) || order(a, b)).slice(0, WAYS);
}

/** The largest microbatch that fits and divides the present one, else the smallest; none where it is one row already. */
async function smallerBatch(seeking: Seeking, change: Partial<Planned>, flags: string): Promise<Way[]> {
  const { microBatch, context, batchTokens } = seeking.config;
  const sizes = Array.from({ length: microBatch - 1 }, (_, i) => microBatch - 1 - i).filter((size) =>
    microBatch % size === 0
  );
  let way: Way | undefined;
  for (const size of sizes) {
    const tokens = batchTokens === 0 ? ` --batch-tokens ${microBatch * context}` : "";
    way = await measured(seeking, `--micro-batch ${size}${tokens}${flags}`, { ...change, microBatch: size });
    if (way.total <= seeking.limit) break;
  }
  return way === undefined ? [] : [way];
}

async function measured(
  { shape, config, capabilities }: Seeking,
  flags: string,
  change: Partial<Planned>,
): Promise<Way> {
  const options = stepOptions({ ...config, ...change });
  const { total, microstep } = await footprint(shape, options, capabilities);
  return { flags, total, flops: microstep.flops / options.rows };
}

/** `2.46 GB` */
export function formatGigabytes(bytes: number): string {
  return `${(bytes / 1e9).toFixed(bytes < 1e9 ? 3 : 2)} GB`;
}
