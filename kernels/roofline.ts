/** What the adapter at hand does at its best: products and copies, measured. It knows no model. */
import type { Command } from "./gpu/assemble.ts";
import type { Device } from "./gpu/device.ts";
import { type Call, Graph } from "./gpu/graph.ts";
import { Match } from "./gpu/match.ts";
import type { Roofline } from "./gpu/profile.ts";
import type { Stopwatch } from "./gpu/stopwatch.ts";
import { Isolated } from "./gpu/trial.ts";
import { matmul } from "./matmul.ts";

/** Rows and columns of the products: large enough for kernels to be at their best, some milliseconds each. */
const SIZE = { cpu: 512, gpu: 2048 };

/** Bytes of the copies: past every cache. */
const COPY_BYTES = 1 << 26;

const TRIES = 4;

/** The fastest product's operations and the fastest copy's bytes, read and written, a second. */
export async function measureRoofline(device: Device, stopwatch: Stopwatch): Promise<Roofline> {
  const size = device.capabilities.cpu ? SIZE.cpu : SIZE.gpu;
  const products = [];
  for (const dtype of ["f32", "bf16"] as const) products.push(await fastestProduct(device, stopwatch, size, dtype));
  return { flops: 2 * size ** 3 / (Math.min(...products) / 1000), bytes: await copyRate(device, stopwatch) };
}

/** Milliseconds of the fastest candidate for a product with a second operand of `dtype`. */
async function fastestProduct(
  device: Device,
  stopwatch: Stopwatch,
  size: number,
  dtype: "f32" | "bf16",
): Promise<number> {
  const graph = new Graph();
  const product = matmul(graph.variable("a", [size, size]), graph.variable("b", [size, size], dtype));
  const call = product.source as Call;
  const candidates = call.op.kernels(call, device.capabilities);
  using isolated = new Isolated(device, { call, candidates });
  const result = await new Match(device, stopwatch, isolated, () => {}).play(candidates.length, () => false);
  return result?.milliseconds ?? Infinity;
}

async function copyRate(device: Device, stopwatch: Stopwatch): Promise<number> {
  const [from, to] = ["from", "to"].map((label) => device.createBuffer(COPY_BYTES, label));
  const slice = (buffer: GPUBuffer) => ({ buffer, offset: 0, size: COPY_BYTES });
  const copy: Command[] = [{ kind: "copy", from: slice(from), to: slice(to) }];
  const times: number[] = [];
  for (let i = 0; i < TRIES; i++) times.push(await stopwatch.time(copy));
  device.destroy(from, to);
  return 2 * COPY_BYTES / (Math.min(...times) / 1000);
}
