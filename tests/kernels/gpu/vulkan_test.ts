/** What is read from Vulkan's structures over FFI, on the drivers at hand. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { enumerateRepeatedly, enumerateVulkan, type VulkanDevice } from "../../../kernels/gpu/vulkan.ts";
import { testWithSwiftShader } from "../../swiftshader.ts";

const CHILD = fileURLToPath(new URL("./vulkan_child.ts", import.meta.url));

async function inChild(
  permissions: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<VulkanDevice[] | null> {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-prompt", "--allow-read", ...permissions, CHILD],
    env: { XDG_RUNTIME_DIR: "/tmp", ...env },
  });
  const { stdout, stderr, code } = await child.output();
  assert.equal(code, 0, new TextDecoder().decode(stderr));
  return JSON.parse(new TextDecoder().decode(stdout));
}

const devices = enumerateVulkan();
const lavapipe = devices?.find(({ name }) => name.startsWith("llvmpipe"));

/** A test that needs a driver; where it is missing the test is ignored and says so. */
function testWith(what: unknown, missing: string, name: string, test: () => void): void {
  const ignore = what === undefined || what === null;
  Deno.test({ name: ignore ? `${name} (ignored: no ${missing} here)` : name, ignore, fn: test });
}

testWith(devices, "Vulkan loader", "every device says what it is", () => {
  assert.ok(devices!.length > 0);
  for (const { name, vendorId, driver, uuid, pci, heaps } of devices!) {
    assert.match(name, /^[\x20-\x7e]{3,}$/);
    assert.ok(vendorId > 0);
    assert.match(driver, /^[\x20-\x7e]*$/);
    if (uuid !== null) assert.match(uuid, /^[\da-f]{8}(-[\da-f]{4}){3}-[\da-f]{12}$/);
    if (pci !== null) assert.match(pci, /^[\da-f]{4}:[\da-f]{2}:[\da-f]{2}\.[0-7]$/);
    assert.ok(heaps.length > 0 && heaps.every(({ bytes }) => Number.isSafeInteger(bytes) && bytes >= 1 << 20));
    assert.ok(heaps.some(({ deviceLocal }) => deviceLocal));
  }
});

testWith(lavapipe, "lavapipe", "lavapipe is read as Mesa writes it", () => {
  const { vendorId, deviceId, type, driver, uuid, pci, heaps, conformant } = lavapipe!;
  assert.ok(conformant);
  assert.deepEqual({ vendorId, deviceId, type, pci }, { vendorId: 0x10005, deviceId: 0, type: "cpu", pci: null });
  assert.match(driver, /^llvmpipe Mesa \d+\.\d+/);
  assert.ok(uuid !== null);
  const { total } = Deno.systemMemoryInfo();
  const [{ bytes, deviceLocal }, ...others] = heaps; // 2 GiB, and of later versions the machine's memory
  assert.ok(deviceLocal && (bytes === 2 ** 31 || bytes > total / 4 && bytes <= total), `${bytes} of ${total}`);
  assert.deepEqual(others, []);
});

testWith(devices, "Vulkan loader", "enumerations of one instance agree", () => {
  const [first, ...later] = enumerateRepeatedly(3)!;
  for (const order of later) assert.deepEqual(order, first);
});

Deno.test("where FFI isn't permitted nothing is asked and nothing is known", async () => {
  assert.equal(await inChild([]), null);
  assert.deepEqual(await inChild(["--allow-ffi"]), devices);
});

testWithSwiftShader("SwiftShader is read beside the others", async (env) => {
  const devices = await inChild(["--allow-ffi"], env) ?? [];
  const found = devices.find(({ name }) => name.startsWith("SwiftShader"));
  assert.ok(found !== undefined && devices.length > 1, JSON.stringify(devices));
  const { vendorId, deviceId, type, driver, uuid } = found;
  assert.deepEqual({ vendorId, deviceId, type }, { vendorId: 0x1ae0, deviceId: 0xc0de, type: "cpu" });
  assert.match(driver, /^SwiftShader driver/);
  // "SwiftShaderUUID" in ASCII, with a zero
  assert.equal(uuid, "53776966-7453-6861-6465-725555494400");
});
