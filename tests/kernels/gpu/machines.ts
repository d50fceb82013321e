/** Invented machines: what Vulkan would enumerate on them. */
import type { FoundAdapter } from "../../../kernels/gpu/adapters.ts";
import { boardOf } from "../../../kernels/gpu/selection.ts";
import type { VulkanDevice } from "../../../kernels/gpu/vulkan.ts";

const device = (properties: Partial<VulkanDevice>): VulkanDevice => ({
  name: "unnamed",
  vendorId: 0,
  deviceId: 0,
  type: "discrete",
  driver: "",
  uuid: null,
  pci: null,
  heaps: [{ bytes: 24 * 2 ** 30, deviceLocal: true }],
  conformant: true,
  ...properties,
});

const geforce = (pci: string): VulkanDevice =>
  device({
    name: "NVIDIA GeForce RTX 3090",
    vendorId: 0x10de,
    deviceId: 0x2204,
    driver: "NVIDIA 535.54.03",
    uuid: `aaaaaaaa-0000-0000-0000-${pci.replaceAll(/[:.]/g, "").padStart(12, "0")}`,
    pci,
  });

export const leftBoard = geforce("0000:01:00.0");
export const rightBoard = geforce("0000:41:00.0");
export const inProcessor = device({
  name: "Intel(R) UHD Graphics 770 (ADL-S GT1)",
  vendorId: 0x8086,
  deviceId: 0x4680,
  type: "integrated",
  driver: "Intel open-source Mesa driver Mesa 24.0.5",
  uuid: "86808046-0c00-0000-0002-000000000000",
  pci: "0000:00:02.0",
  heaps: [{ bytes: 31 * 2 ** 30, deviceLocal: true }],
});
export const onProcessor = device({
  name: "llvmpipe (LLVM 15.0.6, 256 bits)",
  vendorId: 0x10005,
  type: "cpu",
  driver: "llvmpipe Mesa 22.3.6 (LLVM 15.0.6)",
  uuid: "6d657361-3232-2e33-2e36-000000000000",
});
export const alsoOnProcessor = device({
  name: "SwiftShader Device (Subzero)",
  vendorId: 0x1ae0,
  deviceId: 0xc0de,
  type: "cpu",
  driver: "SwiftShader driver",
  uuid: "53776966-7453-6861-6465-725555494400",
});

/** As listAdapters gives it. */
export function found({ conformant: _, ...device }: VulkanDevice, unreachable: string | null = null): FoundAdapter {
  return { ...device, id: boardOf(device), environment: {}, powerPreference: "high-performance", unreachable };
}
