/** One rank of the scaling bench, a process: steps on a device of its own, alone or with others, each time it is asked. */
import { openDevice } from "../kernels/gpu/device.ts";
import { denseBatch } from "../model/batch.ts";
import { createModel } from "../model/load.ts";
import { openPosixRegion } from "../train/posix_memory.ts";
import { regionBytes, sharedCommunicator } from "../train/shared_memory.ts";
import { compileStep } from "../train/step.ts";
import { TextLineStream } from "../model/lines.ts";
import { CLIP, configOf } from "./step.ts";
import { OPTIMIZER, type StepWork, tokenAt } from "./work.ts";

export interface Place {
  readonly work: StepWork;
  readonly rank: number;
  readonly size: number;
  /** Memory shared with the others; null where each is alone. */
  readonly memory: string | null;
}

async function openRank({ work, rank, size, memory }: Place): Promise<{ adapter: string; step: () => Promise<void> }> {
  const device = await openDevice();
  const config = configOf(work);
  const model = createModel(device, config, { seed: 1 });
  const { learningRate, ...optimizer } = OPTIMIZER;
  const { context, rows, vocabulary } = work;
  const communicator = memory === null
    ? undefined
    : sharedCommunicator(openPosixRegion(memory, regionBytes(size)), { rank, size });
  const options = { rows: rows * context, optimizer: { ...optimizer, clip: CLIP }, dropout: false };
  const step = await compileStep(model, options, communicator && { communicator, wire: "f32", shard: false });
  const ids = (shift: number) =>
    Array.from({ length: rows }, (_, row) => {
      return Array.from({ length: context }, (_, i) => tokenAt((rank * rows + row) * context + i + shift, vocabulary));
    });
  const batches = [denseBatch(config, ids(0), ids(1))];
  let update = 0;
  return {
    adapter: device.name,
    async step() {
      update++;
      await communicator?.barrier();
      await step.accumulate({ batches, scale: 1 / (size * rows * context), seed: 0, update });
      await step.update({ learningRate, update });
      await step.report();
    },
  };
}

const { adapter, step } = await openRank(JSON.parse(Deno.args[0]));
console.log(JSON.stringify({ ready: { adapter } }));
for await (const _ of Deno.stdin.readable.pipeThrough(new TextDecoderStream()).pipeThrough(new TextLineStream())) {
  const began = performance.now();
  await step();
  console.log(JSON.stringify({ ms: performance.now() - began }));
}
