/** The adapters command: which GPUs the machine offers and what they grant. It trains nothing. */
import { type Device, openDevice } from "../kernels/gpu/device.ts";
import { flag, helpText, parseFlags } from "../model/arguments.ts";

const fields = { json: flag("print the list as JSON") };

const USAGE = `Lists the adapters that WebGPU offers here; training takes the first.

  deno task adapters [--json]`;

/** One adapter, as far as WebGPU tells. */
export interface AdapterDescription {
  readonly name: string;
  readonly type: "gpu" | "cpu";
  /** PCI ids, and what else the driver says of itself. */
  readonly driver: string;
  readonly features: readonly string[];
  readonly subgroupSize: number;
  readonly limits: Readonly<Record<string, number>>;
}

const SHOWN_LIMITS = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxComputeWorkgroupStorageSize",
  "maxComputeInvocationsPerWorkgroup",
  "maxStorageBuffersPerShaderStage",
] as const;

/** Runs the command. @returns what to print. @throws UserError with exit code 3 where there is no adapter. */
export async function adaptersCommand(args: readonly string[]): Promise<string> {
  const { values, help } = parseFlags(fields, args);
  if (help) return helpText(USAGE, fields);
  const adapters = await listAdapters();
  return values.json ? JSON.stringify(adapters, null, 2) + "\n" : adapters.map(format).join("\n");
}

/** WebGPU has no list: each preference shows the adapter it would choose. */
async function listAdapters(): Promise<AdapterDescription[]> {
  const found: AdapterDescription[] = [];
  for (const powerPreference of ["high-performance", "low-power"] as const) {
    using device = await openDevice({ powerPreference });
    const adapter = describe(device);
    if (!found.some((other) => JSON.stringify(other) === JSON.stringify(adapter))) found.push(adapter);
  }
  return found;
}

function describe({ name, info, features, capabilities }: Device): AdapterDescription {
  return {
    name,
    type: capabilities.cpu ? "cpu" : "gpu",
    driver: driverOf(info),
    features,
    subgroupSize: capabilities.subgroupSize,
    limits: Object.fromEntries(SHOWN_LIMITS.map((limit) => [limit, capabilities.limits[limit]])),
  };
}

/** PCI ids and architecture, as far as the adapter tells. */
export function driverOf({ vendor, device, architecture }: GPUAdapterInfo): string {
  const ids = [vendor, device].filter((id) => id !== "").join(":");
  return [ids, architecture].filter((part) => part !== "").join(" ");
}

function format({ name, type, driver, features, subgroupSize, limits }: AdapterDescription, index: number): string {
  const lines = [
    `${index}: ${name}${index === 0 ? "  (training takes this one)" : ""}`,
    `   type        ${type === "cpu" ? "CPU" : "GPU"}`,
    `   driver      ${driver || "unknown"}`,
    `   features    ${features.join(", ") || "none"}${subgroupSize > 0 ? `; subgroups of ${subgroupSize}` : ""}`,
    ...Object.entries(limits).map(([limit, value]) => `   ${limit} ${value.toLocaleString("en-US")}`),
  ];
  return lines.join("\n") + "\n";
}
