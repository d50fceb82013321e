/** The Worker that owns the GPU: opens a device and an engine, and answers over messages. Knows no text and no HTTP. */
import { openDevice } from "../kernels/gpu/device.ts";
import { createEngine } from "./engine.ts";
import { hostEngine, type WorkerPort } from "./remote_engine.ts";

hostEngine(self as unknown as WorkerPort, async (folder) => {
  const device = await openDevice();
  try {
    const engine = await createEngine(device, folder);
    const dispose = engine[Symbol.asyncDispose].bind(engine);
    return Object.assign(engine, {
      async [Symbol.asyncDispose]() {
        await dispose();
        device[Symbol.dispose]();
      },
    });
  } catch (error) {
    device[Symbol.dispose]();
    throw error;
  }
});
