/** Kernels as contenders: a graph compiled alone, run many times, waited for once. It knows no op. */
import type { Device } from "../kernels/gpu/device.ts";
import { Graph, type Offer, type Tensor } from "../kernels/gpu/graph.ts";
import { compile, type Program } from "../kernels/gpu/program.ts";
import { createStore } from "../kernels/gpu/store.ts";
import { type Contender, timeMany } from "./harness.ts";

/** A graph's outputs, and the data of its inputs by name. */
export interface Built {
  readonly outputs: Readonly<Record<string, Tensor>>;
  readonly inputs: Readonly<Record<string, ArrayBufferView>>;
}

export interface Kernel extends Contender {
  readonly program: Program;
}

/** Compiles what `build` makes, writes its inputs once and runs it; operands are copied to textures in each run. */
export async function openKernel(device: Device, name: string, build: (graph: Graph) => Built): Promise<Kernel> {
  const graph = new Graph();
  const { outputs, inputs } = build(graph);
  const store = createStore(device);
  const program = await compile(device, graph, outputs, store);
  const probe = { buffer: device.createBuffer(16, "bench probe"), offset: 0, size: 4 };
  program.run(inputs);
  const run = timeMany(async (times) => {
    for (let time = 0; time < times; time++) program.run();
    await device.download([probe]); // what was submitted before is done by then
  });
  return {
    name,
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

/** Runs `body` while the device's programs use no subgroups. */
export async function withoutSubgroups<T>(device: Device, body: () => Promise<T>): Promise<T> {
  const before = device.chooser;
  const plain = ({ candidates }: Offer) => candidates.map((dispatches) => !dispatches.some(usesSubgroups));
  device.chooser = {
    async choose(offers) {
      const allowed = offers.map((offer) => plain(offer).flatMap((free, index) => free ? [index] : []));
      const narrowed = offers.map((offer, i) => ({ ...offer, candidates: allowed[i].map((j) => offer.candidates[j]) }));
      const chosen = await before?.choose(narrowed) ?? offers.map(() => 0);
      return chosen.map((index, i) => allowed[i][index]);
    },
  };
  try {
    return await body();
  } finally {
    device.chooser = before;
  }
}

function usesSubgroups({ wgsl }: Offer["candidates"][number][number]): boolean {
  return wgsl.includes("subgroup");
}
