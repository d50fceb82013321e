/** What the adapter at hand does in a second, from one product and one sum of long vectors: enough to predict a step's time. */
import type { Device } from "../kernels/gpu/device.ts";
import { Graph, type Tensor } from "../kernels/gpu/graph.ts";
import { accumulate } from "../kernels/gpu/primitives.ts";
import { compile } from "../kernels/gpu/program.ts";
import { openStopwatch, type Stopwatch } from "../kernels/gpu/stopwatch.ts";
import { createStore } from "../kernels/gpu/store.ts";
import type { Rates } from "../kernels/gpu/work.ts";
import { matmul } from "../kernels/matmul.ts";
import type { Precision } from "./precision.ts";

/** Rows, inner size and columns of a layer's product. */
const PRODUCT = [1024, 768, 768] as const;

/** Elements of the long vectors: past every cache. */
const VECTOR = 1 << 22;

/** Milliseconds that a measurement should take, and how many are made. */
const MEASUREMENT = { milliseconds: 40, tries: 3 };

/** Measures for about a second. */
export async function calibrate(device: Device, precision: Precision): Promise<Rates> {
  using stopwatch = await openStopwatch(device);
  const [rows, inner, columns] = PRODUCT;
  const product = new Graph();
  const [a, b] = [product.input("a", [rows, inner], precision), product.input("b", [inner, columns], precision)];
  const stream = new Graph();
  const sum = accumulate(stream.input("sum", [VECTOR]), stream.input("x", [VECTOR]));
  const flops = await rate(device, stopwatch, product, matmul(a, b), "flops");
  return { flops, bytes: await rate(device, stopwatch, stream, sum, "bytes") };
}

/** Operations or bytes a second of a graph's calls, best of several. */
async function rate(
  device: Device,
  stopwatch: Stopwatch,
  graph: Graph,
  output: Tensor,
  unit: keyof Rates,
): Promise<number> {
  using store = createStore(device);
  using program = await compile(device, graph, { output }, store, { choose: () => 0 });
  await stopwatch.time(program.commands); // compiles
  const once = Math.max(0.01, await stopwatch.time(program.commands));
  const times = Math.max(1, Math.ceil(MEASUREMENT.milliseconds / once));
  let best = Infinity;
  for (let i = 0; i < MEASUREMENT.tries; i++) {
    best = Math.min(best, await stopwatch.time(program.commands, times) / times / 1000);
  }
  const amount = graph.calls.reduce((sum, call) => sum + call.op.cost(call)[unit], 0);
  return amount / best;
}
