/** The Worker that owns the GPU: opens a device, a model and its engine, and answers over messages. Knows no text and no HTTP. */
import { openAdapter } from "../kernels/gpu/adapters.ts";
import { openDevice } from "../kernels/gpu/device.ts";
import { cachedChoices } from "../kernels/gpu/tune.ts";
import { cacheFolder } from "../kernels/gpu/tune_cache.ts";
import { loadModel } from "../model/load.ts";
import { createEngine } from "./engine.ts";
import { hostEngine, type WorkerPort } from "./engine_host.ts";

hostEngine(self as unknown as WorkerPort, async (folder, resources, { dtype, engine: options, adapter, warm }) => {
  const device = resources.use(adapter ? await openAdapter(adapter) : await openDevice());
  device.chooser = cachedChoices(device, cacheFolder(), (line) => console.error(`note: ${line}`));
  const model = resources.use(await loadModel(device, folder, { dtype, serving: true }));
  const engine = resources.use(createEngine(model, options));
  if (warm) await engine.warm();
  return engine;
});
