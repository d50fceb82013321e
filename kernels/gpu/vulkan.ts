/**
 * The physical devices that Vulkan's loader shows this process, read over FFI: WebGPU tells neither a board's UUID nor its
 * PCI address nor its memory. It opens no device and knows nothing of WebGPU.
 *
 * Layouts of structures are those of vulkan_core.h on 64-bit machines.
 */

export type DeviceType = "other" | "integrated" | "discrete" | "virtual" | "cpu";

export interface MemoryHeap {
  readonly bytes: number;
  /** On the board; else the host's. */
  readonly deviceLocal: boolean;
}

export interface VulkanDevice {
  readonly name: string;
  readonly vendorId: number;
  readonly deviceId: number;
  readonly type: DeviceType;
  /** Name and version as the driver writes them; empty where it doesn't. */
  readonly driver: string;
  /** null where the driver gives none. */
  readonly uuid: string | null;
  /** domain:bus:device.function; null where the driver doesn't tell or there is no such bus. */
  readonly pci: string | null;
  readonly heaps: readonly MemoryHeap[];
  /** Whether its driver has passed Vulkan's conformance tests, as far as it tells. */
  readonly conformant: boolean;
}

const LIBRARIES: Readonly<Record<string, readonly string[]>> = {
  linux: ["libvulkan.so.1", "libvulkan.so"],
  windows: ["vulkan-1.dll"],
};

const SYMBOLS = {
  vkCreateInstance: { parameters: ["buffer", "pointer", "buffer"], result: "i32" },
  vkDestroyInstance: { parameters: ["pointer", "pointer"], result: "void" },
  vkEnumeratePhysicalDevices: { parameters: ["pointer", "buffer", "buffer"], result: "i32" },
  vkEnumerateDeviceExtensionProperties: { parameters: ["pointer", "pointer", "buffer", "buffer"], result: "i32" },
  vkGetPhysicalDeviceProperties2: { parameters: ["pointer", "buffer"], result: "void" },
  vkGetPhysicalDeviceMemoryProperties2: { parameters: ["pointer", "buffer"], result: "void" },
} as const;

interface Vulkan {
  readonly symbols: Deno.StaticForeignLibraryInterface<typeof SYMBOLS>;
  readonly instanceInfo: DataView<ArrayBuffer>;
  /** `instanceInfo` holds its address, which keeps nothing from being collected. */
  readonly applicationInfo: DataView<ArrayBuffer>;
}

const VK_SUCCESS = 0;
const VERSION_1_1 = (1 << 22) | (1 << 12);
const TYPES: readonly DeviceType[] = ["other", "integrated", "discrete", "virtual", "cpu"];
const EXTENSION_BYTES = 260;
const NAME_BYTES = 256;
const HEAP_DEVICE_LOCAL = 1;

/** VkStructureType. */
const structure = {
  applicationInfo: 0,
  instanceCreateInfo: 1,
  properties2: 1000059001,
  memoryProperties2: 1000059006,
  idProperties: 1000071004,
  driverProperties: 1000196000,
  pciBusInfo: 1000212000,
} as const;

/** Stays open: a loader that is unloaded takes drivers with it that others may use. */
let library: Vulkan | null = null;

/** Whether FFI is permitted; nobody is asked. */
function mayUseForeignFunctions(): boolean {
  return globalThis.Deno?.permissions.querySync({ name: "ffi" }).state === "granted";
}

/**
 * All devices in the loader's order, as the environment of this moment makes it; null where FFI isn't permitted, there is
 * no loader, or WebGPU has no Vulkan here.
 */
export function enumerateVulkan(): VulkanDevice[] | null {
  return enumerateRepeatedly(1)?.[0] ?? null;
}

/** What each of several enumerations shows a process: a loader that sorts may change its mind from one to the next. */
export function enumerateRepeatedly(times: number): VulkanDevice[][] | null {
  library ??= openLibrary();
  if (library === null) return null;
  const vulkan = library;
  const instance = createInstance(vulkan);
  if (instance === null) return [];
  try {
    const orders = Array.from({ length: times }, () => physicalDevices(vulkan, instance));
    return orders.map((devices) => devices.map((device) => describe(vulkan, device)));
  } finally {
    vulkan.symbols.vkDestroyInstance(instance, null);
  }
}

function openLibrary(): Vulkan | null {
  if (!mayUseForeignFunctions()) return null;
  for (const name of LIBRARIES[Deno.build.os] ?? []) {
    try {
      const { symbols } = Deno.dlopen(name, SYMBOLS);
      const applicationInfo = struct(structure.applicationInfo, 48);
      applicationInfo.setUint32(44, VERSION_1_1, true);
      const instanceInfo = struct(structure.instanceCreateInfo, 64);
      instanceInfo.setBigUint64(24, address(applicationInfo), true);
      return { symbols, instanceInfo, applicationInfo };
    } catch {
      // not here under this name
    }
  }
  return null;
}

/** null where no driver is installed or the loader knows no Vulkan 1.1. */
function createInstance({ symbols, instanceInfo }: Vulkan): Deno.PointerObject | null {
  const instance = new BigUint64Array(1);
  if (symbols.vkCreateInstance(instanceInfo, null, instance) !== VK_SUCCESS) return null;
  return Deno.UnsafePointer.create(instance[0]);
}

function physicalDevices({ symbols }: Vulkan, instance: Deno.PointerObject): Deno.PointerObject[] {
  const count = new Uint32Array(1);
  if (symbols.vkEnumeratePhysicalDevices(instance, count, null) !== VK_SUCCESS || count[0] === 0) return [];
  const handles = new BigUint64Array(count[0]);
  if (symbols.vkEnumeratePhysicalDevices(instance, count, handles) < VK_SUCCESS) return [];
  return [...handles.subarray(0, count[0])].map((handle) => Deno.UnsafePointer.create(handle)!);
}

function describe({ symbols }: Vulkan, device: Deno.PointerObject): VulkanDevice {
  const extensions = extensionsOf(symbols, device);
  const pci = struct(structure.pciBusInfo, 32);
  const driver = struct(structure.driverProperties, 536, extensions.has("VK_EXT_pci_bus_info") ? pci : null);
  const id = struct(structure.idProperties, 64, driver);
  const properties = struct(structure.properties2, 16 + 824, id);
  symbols.vkGetPhysicalDeviceProperties2(device, properties);
  const memory = struct(structure.memoryProperties2, 16 + 520);
  symbols.vkGetPhysicalDeviceMemoryProperties2(device, memory);
  return {
    name: text(properties, 36),
    vendorId: properties.getUint32(24, true),
    deviceId: properties.getUint32(28, true),
    type: TYPES[properties.getUint32(32, true)] ?? "other",
    driver: driverOf(driver),
    uuid: uuidOf(id),
    pci: extensions.has("VK_EXT_pci_bus_info") ? pciOf(pci) : null,
    heaps: heapsOf(memory),
    conformant: isConformant(driver),
  };
}

function extensionsOf(symbols: Vulkan["symbols"], device: Deno.PointerObject): Set<string> {
  const count = new Uint32Array(1);
  symbols.vkEnumerateDeviceExtensionProperties(device, null, count, null);
  const table = new DataView(new ArrayBuffer(EXTENSION_BYTES * Math.max(1, count[0])));
  symbols.vkEnumerateDeviceExtensionProperties(device, null, count, table);
  return new Set(Array.from({ length: count[0] }, (_, i) => text(table, i * EXTENSION_BYTES)));
}

/** driverName is that of the product, driverInfo its version: `NVIDIA 535.54.03`. A driver before Vulkan 1.2 fills neither. */
function driverOf(properties: DataView): string {
  const [name, info] = [text(properties, 20), text(properties, 276)];
  return info.startsWith(name) ? info : `${name} ${info}`.trim();
}

/** Drivers that passed nothing write version 0 of the tests; those that fill in nothing have no driverID either. */
function isConformant(properties: DataView): boolean {
  return properties.getUint32(16, true) === 0 || properties.getUint8(532) > 0;
}

/** As vulkaninfo writes it. */
function uuidOf(properties: DataView): string | null {
  const bytes = Array.from({ length: 16 }, (_, i) => properties.getUint8(16 + i));
  if (bytes.every((byte) => byte === 0)) return null;
  const digits = bytes.map((byte) => hex(byte, 2)).join("");
  return [[0, 8], [8, 12], [12, 16], [16, 20], [20, 32]].map(([from, to]) => digits.slice(from, to)).join("-");
}

/** As lspci writes it. */
function pciOf(properties: DataView): string {
  const [domain, bus, device, unit] = [16, 20, 24, 28].map((offset) => properties.getUint32(offset, true));
  return `${hex(domain, 4)}:${hex(bus, 2)}:${hex(device, 2)}.${unit}`;
}

function heapsOf(memory: DataView): MemoryHeap[] {
  return Array.from({ length: memory.getUint32(276, true) }, (_, i) => ({
    bytes: Number(memory.getBigUint64(280 + 16 * i, true)),
    deviceLocal: (memory.getUint32(288 + 16 * i, true) & HEAP_DEVICE_LOCAL) !== 0,
  }));
}

/** A structure of `bytes` bytes with its sType and pNext set. What it points to must be held until the call. */
function struct(type: number, bytes: number, next: DataView<ArrayBuffer> | null = null): DataView<ArrayBuffer> {
  const view = new DataView(new ArrayBuffer(bytes));
  view.setUint32(0, type, true);
  if (next !== null) view.setBigUint64(8, address(next), true);
  return view;
}

function address(view: DataView<ArrayBuffer>): bigint {
  return BigInt(Deno.UnsafePointer.value(Deno.UnsafePointer.of(view)));
}

/** UTF-8 up to the first zero. */
function text(view: DataView, offset: number): string {
  const bytes = new Uint8Array(view.buffer, view.byteOffset + offset, NAME_BYTES);
  const end = bytes.indexOf(0);
  return new TextDecoder().decode(bytes.subarray(0, end < 0 ? NAME_BYTES : end));
}

function hex(value: number, digits: number): string {
  return value.toString(16).padStart(digits, "0");
}
