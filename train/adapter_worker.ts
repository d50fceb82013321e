/** Opens one adapter as a rank would, and says what it grants. It knows no other adapter. */
/// <reference lib="deno.worker" />
import { type AdapterChoice, openAdapter } from "../kernels/gpu/adapters.ts";
import type { Answer } from "./adapter_probe.ts";

/** The limits that decide what fits and which kernels run. */
const LIMITS = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxComputeWorkgroupStorageSize",
  "maxComputeInvocationsPerWorkgroup",
  "maxStorageBuffersPerShaderStage",
] as const;

async function probe(adapter: AdapterChoice): Promise<Answer> {
  try {
    using device = await openAdapter(adapter);
    const { features, capabilities: { subgroupSize, limits } } = device;
    return { features, subgroupSize, limits: Object.fromEntries(LIMITS.map((limit) => [limit, limits[limit]])) };
  } catch (error) {
    return { error: error instanceof Error ? error.message : String(error) };
  }
}

self.onmessage = async ({ data }: MessageEvent<AdapterChoice>) => self.postMessage(await probe(data));
