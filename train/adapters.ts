/** The adapters command: which GPUs the machine offers, what they grant and which ranks they would get. It trains nothing. */
import { chooseAdapters, type FoundAdapter, listAdapters } from "../kernels/gpu/adapters.ts";
import { flag, helpText, parseFlags } from "../model/arguments.ts";
import { type Granted, probeAdapters } from "./adapter_probe.ts";
import { fields as trainFields } from "./config.ts";
import { formatGigabytes } from "./fit.ts";

const fields = {
  adapters: trainFields.adapters,
  ranks: trainFields.ranks,
  json: flag("print the list as JSON"),
};

const USAGE = `Lists the adapters of this machine and the ranks that training would start on them.

  deno task adapters [--adapters all|NAME,…|NUMBER,…] [--ranks N] [--json]

Training takes the same --adapters and --ranks. A name may be part of one, and takes all adapters that have it.`;

/** An adapter, what it grants, and who would use it. */
export interface AdapterDescription extends FoundAdapter, Partial<Granted> {
  readonly index: number;
  /** The ranks that training would start on it. */
  readonly ranks: readonly number[];
  /** Why it can't be opened; null where it can. */
  readonly error: string | null;
}

/**
 * Runs the command.
 *
 * @returns what to print.
 * @throws UserError with exit code 3 where there is no adapter, 2 for a flag that fits none.
 */
export async function adaptersCommand(args: readonly string[]): Promise<string> {
  const { values, help } = parseFlags(fields, args);
  if (help) return helpText(USAGE, fields);
  const found = await listAdapters();
  const chosen = chooseAdapters(found, values.adapters ?? "", values.ranks ?? 0);
  const granted = await probeAdapters(found);
  const adapters = found.map((adapter, index) => describe(adapter, index, chosen, granted[index]));
  if (values.json) return JSON.stringify(adapters, null, 2) + "\n";
  return [...adapters.map(block), summary(adapters, chosen.length)].join("\n");
}

function describe(
  adapter: FoundAdapter,
  index: number,
  chosen: readonly FoundAdapter[],
  granted: Granted | Error,
): AdapterDescription {
  const ranks = chosen.flatMap((choice, rank) => choice === adapter ? [rank] : []);
  const outcome = granted instanceof Error ? { error: granted.message } : { ...granted, error: null };
  return { index, ...adapter, ranks, ...outcome };
}

const KINDS: Readonly<Record<FoundAdapter["type"], string>> = {
  discrete: "discrete GPU",
  integrated: "GPU in the processor",
  virtual: "virtual GPU",
  cpu: "CPU driver",
  other: "GPU",
};

/** An adapter in a few lines, as far as it is known. */
function block(adapter: AdapterDescription): string {
  const { index, name, type, vendorId, deviceId, driver, pci, uuid, heaps, ranks, error } = adapter;
  const model = vendorId === null || deviceId === null ? "" : ` ${hex(vendorId)}:${hex(deviceId)}`;
  const rows = [
    ["type", KINDS[type] + model],
    ["driver", driver],
    ["PCI", pci ?? ""],
    ["UUID", uuid ?? ""],
    [
      "memory",
      heaps.map(({ bytes, deviceLocal }) => formatGigabytes(bytes) + (deviceLocal ? "" : " of the host's")).join(", "),
    ],
    ...grantedRows(adapter),
    ["not usable", error ?? ""],
  ];
  const lines = rows.filter(([, value]) => value !== "").map(([label, value]) => `   ${label.padEnd(12)}${value}`);
  return [`${index}: ${name}${ranks.length === 0 ? "" : `  → ${rankNames(ranks)}`}`, ...lines, ""].join("\n");
}

function grantedRows({ features, subgroupSize, limits }: AdapterDescription): string[][] {
  if (features === undefined || limits === undefined) return [];
  const named = features.map((feature) => feature === "subgroups" ? `subgroups of ${subgroupSize}` : feature);
  const count = (limit: string) => limits[limit].toLocaleString("en-US");
  return [
    ["features", named.join(", ") || "none"],
    [
      "buffers",
      `of ${formatGigabytes(limits.maxBufferSize)}, bound in ${formatGigabytes(limits.maxStorageBufferBindingSize)}, ` +
      `${count("maxStorageBuffersPerShaderStage")} in a kernel`,
    ],
    [
      "workgroups",
      `of ${count("maxComputeInvocationsPerWorkgroup")} threads and ${count("maxComputeWorkgroupStorageSize")} bytes`,
    ],
  ];
}

function summary(adapters: readonly AdapterDescription[], ranks: number): string {
  const used = adapters.filter((adapter) => adapter.ranks.length > 0);
  const on = used.map(({ index }) => index).join(", ");
  const start = `Training would start ${ranks === 1 ? "1 rank" : `${ranks} ranks`} on adapter${
    used.length > 1 ? "s" : ""
  } ${on}`;
  const flags = adapters.length > used.length ? "; --adapters takes others" : "";
  return `${start}${flags}.\n`;
}

function rankNames(ranks: readonly number[]): string {
  return ranks.length === 1 ? `rank ${ranks[0]}` : `ranks ${ranks.join(", ")}`;
}

/** As lspci writes ids. */
function hex(id: number): string {
  return id.toString(16).padStart(4, "0");
}

/** PCI ids and architecture, as far as the adapter tells. */
export function driverOf({ vendor, device, architecture }: GPUAdapterInfo): string {
  const ids = [vendor, device].filter((id) => id !== "").join(":");
  return [ids, architecture].filter((part) => part !== "").join(" ");
}
