/** Prints what this process may see of Vulkan's devices, as JSON. */
import { enumerateVulkan } from "../../../kernels/gpu/vulkan.ts";

console.log(JSON.stringify(enumerateVulkan()));
