/**
 * The environment that makes WebGPU, which has no list of adapters, show a certain Vulkan device first. What works depends
 * on the loader, its layers and their versions, so each way is tried by enumerating. It opens no device.
 */
import { enumerateRepeatedly, type VulkanDevice } from "./vulkan.ts";

export type Environment = Readonly<Record<string, string>>;

/** How to ask WebGPU for a device so that it gets that one. */
export interface Selection {
  readonly environment: Environment;
  readonly powerPreference: GPUPowerPreference;
}

/** Everything that changes which device comes first. What a selection doesn't name is unset, so that it can't interfere. */
const SELECTORS = [
  "NODEVICE_SELECT",
  "DRI_PRIME",
  "MESA_VK_DEVICE_SELECT",
  "MESA_VK_DEVICE_SELECT_FORCE_DEFAULT_DEVICE",
  "VK_LOADER_DEVICE_SELECT",
  "VK_LOADER_DISABLE_SELECT",
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

/** Enumerations that must agree on what comes first. WebGPU enumerates each time it is asked for an adapter. */
const REPEATED = 3;

/** The device that WebGPU takes in the environment of this moment; undefined where there is none, or not always the same. */
export function takenNow(powerPreference: GPUPowerPreference): VulkanDevice | undefined {
  const [first, ...later] = (enumerateRepeatedly(REPEATED) ?? []).map((shown) => shownFirst(shown, powerPreference));
  return later.every((device) => device !== undefined && isSame(device, first)) ? first : undefined;
}

/** The device that WebGPU takes where the loader shows these. It hides drivers that aren't conformant. */
export function shownFirst(
  devices: readonly VulkanDevice[],
  powerPreference: GPUPowerPreference,
): VulkanDevice | undefined {
  const order = BY_TYPE[powerPreference];
  return devices.filter(({ conformant }) => conformant).toSorted((a, b) =>
    order.indexOf(a.type) - order.indexOf(b.type)
  )[0];
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

/** A selection by which WebGPU takes each device, in the same order; null where no way leads to it. */
export function selectionsOf(
  devices: readonly VulkanDevice[],
  taken: (selection: Selection) => VulkanDevice | undefined = takenWith,
  changeable = mayUse(selectionVariables),
): (Selection | null)[] {
  const tried = new Map<string, VulkanDevice | undefined>();
  const leadsTo = (device: VulkanDevice, selection: Selection) => {
    const key = JSON.stringify(selection);
    if (!tried.has(key)) tried.set(key, taken(selection));
    return isSame(device, tried.get(key));
  };
  return devices.map((device) => {
    const powerPreference = device.type === "integrated" ? "low-power" : "high-performance";
    const environments = devices.length > 1 && changeable ? environmentsFor(device, devices) : [{}];
    const selections = environments.map((environment) => ({ environment, powerPreference } as const));
    return selections.find((selection) => leadsTo(device, selection)) ?? null;
  });
}

function takenWith({ environment, powerPreference }: Selection): VulkanDevice | undefined {
  using _ = apply(environment);
  return takenNow(powerPreference);
}

function isSame(a: VulkanDevice, b: VulkanDevice | undefined): boolean {
  return b !== undefined && boardOf(a) === boardOf(b) && a.name === b.name;
}

/**
 * Ways to have a device shown first, the surest first. Where boards are alike only DRI_PRIME names one, and Mesa 22.3's layer
 * takes another board than it names; that is no matter as long as some way shows the one that is wanted.
 */
export function environmentsFor(device: VulkanDevice, all: readonly VulkanDevice[]): Environment[] {
  const [vendor, model] = [device.vendorId.toString(16), device.deviceId.toString(16)];
  const twins =
    all.filter(({ vendorId, deviceId }) => vendorId === device.vendorId && deviceId === device.deviceId).length > 1;
  const byPlace = (pci: string) => ({ DRI_PRIME: `pci-${pci.replaceAll(/[:.]/g, "_")}` });
  const others = all.flatMap(({ pci }) => pci === null || pci === device.pci ? [] : [byPlace(pci)]);
  const byModel = { MESA_VK_DEVICE_SELECT: `${vendor}:${model}` };
  const withoutLayer = { NODEVICE_SELECT: "1" };
  const narrow = {
    [BACKEND]: "vulkan",
    // The loader filters from version 1.4.326 on, on Linux and Windows.
    VK_LOADER_VENDOR_ID_FILTER: `0x${vendor}`,
    VK_LOADER_DEVICE_ID_FILTER: `0x${model}`,
    // The loader sorts, on Linux; boards that are alike it shuffles.
    ...(twins ? {} : { VK_LOADER_DEVICE_SELECT: `0x${vendor}:0x${model}` }),
    // Mesa's device-select layer, for drivers of any maker, shows one device only.
    MESA_VK_DEVICE_SELECT_FORCE_DEFAULT_DEVICE: "1",
  };
  const ways = [...(device.pci === null ? [] : [byPlace(device.pci)]), byModel, withoutLayer, ...others];
  const unsorted = { VK_LOADER_DISABLE_SELECT: "1" };
  return [...ways, ...ways.map((way) => ({ ...unsorted, ...way }))].map((way) => ({ ...narrow, ...way }));
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
