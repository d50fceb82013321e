/** wgpt and other programs at the same work, in turn: the standard product and training steps. */
import { openDevice } from "../kernels/gpu/device.ts";
import { driverOf } from "../train/adapters.ts";
import { type Bench, type BenchOptions, compare, join, type Measured, type Peer, select } from "./harness.ts";
import { openProduct } from "./matmul.ts";
import { jaxWasm, jaxWebgpu, onnx, tensorflow, torch } from "./peer_list.ts";
import { measureStep } from "./step.ts";
import { productFlops, sizesOf, STANDARD_PRODUCT, STEPS, type StepWork } from "./work.ts";

const REPEATS = 5;

interface Case {
  readonly name: string;
  measure(adapter: string, options: BenchOptions): Promise<Measured>;
}

/** The libraries that can do a step, by its name; the others have no gradients or too little memory. */
const LIBRARIES: Readonly<Record<string, (work: StepWork, adapter: string) => Peer[]>> = {
  "mini-v2048": (work, adapter) => [jaxWebgpu(work, adapter), jaxWasm(work)],
  mini: (work, adapter) => [jaxWebgpu(work, adapter), jaxWasm(work)],
  gpt2: () => [],
};

const CASES: readonly Case[] = [
  { name: `matmul ${sizesOf(STANDARD_PRODUCT)}`, measure: measureProduct },
  ...STEPS.filter(({ name }) => name in LIBRARIES).map((work): Case => ({
    name: work.name,
    async measure(adapter, options) {
      return await measureStep(work, [...LIBRARIES[work.name](work, adapter), ...await torchOrMiss(work)], options);
    },
  })),
];

async function torchOrMiss(work: Parameters<typeof torch>[0]): Promise<readonly Peer[]> {
  const found = await torch(work);
  const open = () => Promise.reject(new Error("not installed: no Python here imports torch"));
  return found.length > 0 ? found : [{ name: "PyTorch", open }];
}

async function measureProduct(adapter: string, options: BenchOptions): Promise<Measured> {
  const { repeats = REPEATS, progress } = options;
  using device = await openDevice();
  await using ours = await openProduct(device, STANDARD_PRODUCT, options);
  const work = STANDARD_PRODUCT;
  return await compare({
    name: `matmul ${sizesOf(work)}`,
    amount: { flops: productFlops(work) },
    ours,
    peers: [
      jaxWebgpu(work, adapter),
      tensorflow(work, adapter),
      onnx(work, adapter),
      jaxWasm(work),
      ...await torchOrMiss(work),
    ],
    repeats,
    progress,
  });
}

export async function benchPeers(options: BenchOptions): Promise<Bench> {
  const { name: adapter, driver } = await adapterHere();
  const measured: Measured[] = [];
  for (const { measure } of select(CASES, options.case)) measured.push(await measure(adapter, options));
  const { results, failed, peers } = join(measured);
  return {
    name: "peers",
    adapter,
    driver,
    config: { repeats: options.repeats ?? REPEATS, dtype: "f32", peers },
    results,
    failed,
  };
}

async function adapterHere(): Promise<{ name: string; driver: string }> {
  using device = await openDevice();
  return { name: device.name, driver: driverOf(device.info) };
}
