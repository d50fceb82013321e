/** Kernels as contenders: a graph compiled alone, run many times, waited for once. It knows no op. */
import type { Device } from "../kernels/gpu/device.ts";
import { type Dispatch, Graph, type Tensor } from "../kernels/gpu/graph.ts";
import { compile, type Program } from "../kernels/gpu/program.ts";
import { createStore } from "../kernels/gpu/store.ts";
import { withKernels } from "../train/kernels.ts";
import { type BenchOptions, type Contender, timeMany } from "./harness.ts";

/** A graph's outputs, and the data of its inputs by name. */
export interface Built {
  readonly outputs: Readonly<Record<string, Tensor>>;
  readonly inputs: Readonly<Record<string, ArrayBufferView>>;
}

export interface Kernel extends Contender {
  readonly program: Program;
}

/** How a kernel is chosen. */
export interface KernelOptions extends BenchOptions {
  /** Takes the best guess among those that need no subgroups, instead of tuning. */
  readonly noSubgroups?: boolean;
}

/** Compiles what `build` makes, writes its inputs once and runs it; operands are copied to textures in each run. */
export async function openKernel(
  device: Device,
  build: (graph: Graph) => Built,
  options: KernelOptions,
): Promise<Kernel> {
  const graph = new Graph();
  const { outputs, inputs } = build(graph);
  const store = createStore(device);
  const program = options.noSubgroups
    ? await compile(device, graph, outputs, store, {
      choose: (_, candidates) => candidates.findIndex(needsNoSubgroups),
    })
    : await tuned(device, options, () => compile(device, graph, outputs, store));
  const probe = { buffer: device.createBuffer(16, "bench probe"), offset: 0, size: 4 };
  program.run(inputs);
  const run = timeMany(async (times) => {
    for (let time = 0; time < times; time++) program.run();
    await device.download([probe]); // what was submitted before is done by then
  });
  return {
    name: "wgpt",
    program,
    run,
    [Symbol.asyncDispose]() {
      program[Symbol.dispose]();
      store[Symbol.dispose]();
      device.destroy(probe.buffer);
      return Promise.resolve();
    },
  };
}

/** Whether a candidate runs where subgroups aren't granted. */
function needsNoSubgroups(dispatches: readonly Dispatch[]): boolean {
  return !dispatches.some(({ wgsl }) => wgsl.includes("subgroup"));
}

/** Compiles with kernels tuned or looked up before, as the command line asks. */
export async function tuned<T>(device: Device, { tune, tuneSeconds, progress }: BenchOptions, build: () => Promise<T>) {
  const console = { line: progress, status: progress };
  return (await withKernels(device, { config: { tune, tuneSeconds }, console }, build)).built;
}
