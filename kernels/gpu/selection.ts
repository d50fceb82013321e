/**
 * The environment that makes WebGPU, which has no list of adapters, show a certain Vulkan device first. What works depends
 * on the loader, its layers and their versions, so each way is tried by enumerating. It opens no device.
 */
import { enumerateVulkan, type VulkanDevice } from "./vulkan.ts";

export type Environment = Readonly<Record<string, string>>;

/** How to ask WebGPU for a device so that it gets that one. */
export interface Selection {
  readonly environment: Environment;
  readonly powerPreference: GPUPowerPreference;
}

/** Everything that changes which device comes first. What a selection doesn't name is unset, so that it can't interfere. */
const SELECTORS = [
  "DRI_PRIME",
  "MESA_VK_DEVICE_SELECT",
  "MESA_VK_DEVICE_SELECT_FORCE_DEFAULT_DEVICE",
  "VK_LOADER_DEVICE_SELECT",
  "VK_LOADER_VENDOR_ID_FILTER",
  "VK_LOADER_DEVICE_ID_FILTER",
] as const;

const BACKEND = "DENO_WEBGPU_BACKEND";

/** The variables that a selection may set: a process that selects needs the right to them. */
export const selectionVariables: readonly string[] = [BACKEND, ...SELECTORS];

/** Of several devices WebGPU takes the first of the best kind (wgpu-core, Instance::request_adapter). */
const BY_TYPE = {
  "high-performance": ["discrete", "integrated", "other", "virtual", "cpu"],
  "low-power": ["integrated", "discrete", "other", "virtual", "cpu"],
} as const;

/** The device that WebGPU takes where the loader shows these. */
export function shownFirst<T extends Pick<VulkanDevice, "type">>(
  devices: readonly T[],
  powerPreference: GPUPowerPreference,
): T | undefined {
  const order = BY_TYPE[powerPreference];
  return devices.toSorted((a, b) => order.indexOf(a.type) - order.indexOf(b.type))[0];
}

/** Identifies a board: two drivers may give one board two UUIDs, but it sits in one place. */
export function boardOf({ pci, uuid }: Pick<VulkanDevice, "pci" | "uuid">): string | null {
  return pci ?? uuid;
}

/** Whether the loader may show Vulkan devices to WebGPU: the user may have asked for other backends only. */
export function usesVulkan(): boolean {
  if (!mayUse([BACKEND])) return true;
  const backends = Deno.env.get(BACKEND);
  return backends === undefined || backends === "" || backends.split(",").includes("vulkan");
}

/** A selection that shows each device, in the same order; null where none of the ways does. */
export function selectionsOf(
  devices: readonly VulkanDevice[],
  show: (environment: Environment) => readonly VulkanDevice[] = (environment) => {
    using _ = apply(environment);
    return enumerateVulkan() ?? [];
  },
): (Selection | null)[] {
  const changeable = mayUse(selectionVariables);
  return devices.map((device) => {
    const powerPreference = device.type === "integrated" ? "low-power" : "high-performance";
    const shows = (shown: readonly VulkanDevice[]) => isSame(shownFirst(shown, powerPreference), device);
    if (devices.length === 1 || !changeable) return shows(devices) ? { environment: {}, powerPreference } : null;
    const environment = environmentsFor(device, devices).find((environment) => shows(show(environment)));
    return environment === undefined ? null : { environment, powerPreference };
  });
}

function isSame(a: VulkanDevice | undefined, b: VulkanDevice): boolean {
  return a !== undefined && boardOf(a) === boardOf(b) && a.name === b.name;
}

/** Ways to have a device shown first, the surest first. */
export function environmentsFor(device: VulkanDevice, all: readonly VulkanDevice[]): Environment[] {
  const [vendor, model] = [device.vendorId.toString(16), device.deviceId.toString(16)];
  const narrow = {
    [BACKEND]: "vulkan",
    // The loader's own: it sorts on Linux, and from version 1.4.326 on it filters, also on Windows.
    VK_LOADER_DEVICE_SELECT: `0x${vendor}:0x${model}`,
    VK_LOADER_VENDOR_ID_FILTER: `0x${vendor}`,
    VK_LOADER_DEVICE_ID_FILTER: `0x${model}`,
    // Those of Mesa's device-select layer, for drivers of any maker: shows one device only.
    MESA_VK_DEVICE_SELECT_FORCE_DEFAULT_DEVICE: "1",
  };
  const byPlace = (pci: string) => ({ ...narrow, DRI_PRIME: `pci-${pci.replaceAll(/[:.]/g, "_")}` });
  const others = all.flatMap(({ pci }) => pci === null || pci === device.pci ? [] : [byPlace(pci)]);
  return [
    ...(device.pci === null ? [] : [byPlace(device.pci)]),
    { ...narrow, MESA_VK_DEVICE_SELECT: `${vendor}:${model}` },
    ...others, // the layer of some versions takes a board that is not at the place named
  ];
}

/**
 * Sets a selection's variables until it is disposed of. The environment is the process's: of several Workers only one may
 * select at a time, and none may compute meanwhile, for drivers read it without a lock.
 */
export function apply(environment: Environment): Disposable {
  const names = Object.keys(environment).length === 0 ? [] : selectionVariables;
  const before = names.map((name) => [name, Deno.env.get(name)] as const);
  for (const name of names) setVariable(name, environment[name]);
  return {
    [Symbol.dispose]() {
      for (const [name, value] of before) setVariable(name, value);
    },
  };
}

function setVariable(name: string, value: string | undefined): void {
  if (value === undefined) Deno.env.delete(name);
  else Deno.env.set(name, value);
}

/** Whether these variables may be read and set; nobody is asked. */
export function mayUse(variables: readonly string[]): boolean {
  return variables.every((variable) => Deno.permissions.querySync({ name: "env", variable }).state === "granted");
}
