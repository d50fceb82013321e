/**
 * The device: one adapter opened with everything it grants, buffers that are owned, and transfers that can't abort the
 * process. It knows no tensor and no op.
 */
import { OutOfMemoryError, UserError } from "./errors.ts";
import { type Capabilities, type Chooser, CPU_LOOP_ITERATIONS } from "./graph.ts";
import { Downloads } from "./readback.ts";
import { probeSubgroups, type SubgroupSupport } from "./subgroups.ts";

/** A range of bytes of a buffer. */
export interface BufferSlice {
  readonly buffer: GPUBuffer;
  readonly offset: number;
  readonly size: number;
}

export interface DeviceOptions {
  /** The WebGPU implementation. Default: Deno's own. */
  readonly gpu?: GPU;
  /** Default: high-performance. */
  readonly powerPreference?: GPUPowerPreference;
}

const LIMITS = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxComputeWorkgroupStorageSize",
  "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupSizeX",
  "maxComputeWorkgroupSizeY",
  "maxComputeWorkgroupSizeZ",
  "maxComputeWorkgroupsPerDimension",
  "maxStorageBuffersPerShaderStage",
  "maxStorageTexturesPerShaderStage",
  "maxTextureDimension2D",
  "minStorageBufferOffsetAlignment",
  "minUniformBufferOffsetAlignment",
] as const;

/** Features wgpt uses where granted. Deno grants some that it doesn't list, so each is probed by asking. */
const FEATURES = ["subgroups", "shader-f16", "timestamp-query"] as const;

/** Uploads go by this many bytes, and are sent when as many wait: until then the queue holds a copy of each. */
const UPLOAD_BYTES = 16 << 20;

const NO_ADAPTER = "No WebGPU adapter found: install your GPU's Vulkan driver, or Mesa's CPU driver with " +
  "`sudo apt-get install mesa-vulkan-drivers` (./setup.sh does it on Debian and Ubuntu)";

/**
 * Finds the adapter without opening it.
 *
 * @throws UserError with exit code 3 where there is none.
 */
export async function findAdapter(options: DeviceOptions = {}): Promise<{ gpu: GPU; adapter: GPUAdapter }> {
  prepareEnvironment();
  const gpu = options.gpu ?? navigator.gpu;
  const adapter = await gpu?.requestAdapter(requestOf(options));
  if (!adapter) throw new UserError(NO_ADAPTER, 3);
  return { gpu, adapter };
}

function requestOf({ powerPreference = "high-performance" }: DeviceOptions): GPURequestAdapterOptions {
  return { powerPreference };
}

/**
 * Opens the adapter with all the limits and features it has.
 *
 * @throws UserError with exit code 3 where there is no adapter.
 */
export async function openDevice(options: DeviceOptions = {}): Promise<Device> {
  const { gpu, adapter } = await findAdapter(options);
  const request = requestOf(options);
  const features: GPUFeatureName[] = [];
  for (const feature of FEATURES) if (await grants(gpu, request, feature)) features.push(feature as GPUFeatureName);
  const requiredLimits: Record<string, number> = {};
  for (const name of LIMITS) if (typeof adapter.limits[name] === "number") requiredLimits[name] = adapter.limits[name];
  const handle = await adapter.requestDevice({ requiredFeatures: features, requiredLimits });
  const subgroups = features.includes("subgroups" as GPUFeatureName)
    ? await probeSubgroups(handle, adapter.info)
    : { size: 0, directive: "" };
  return new Device(handle, adapter, features, subgroups);
}

/** Quiets Mesa's complaint about a missing runtime folder and hides the GL view of a Vulkan adapter. */
export function prepareEnvironment(): void {
  if (globalThis.Deno?.build.os !== "linux") return;
  try {
    if (!Deno.env.get("XDG_RUNTIME_DIR")) Deno.env.set("XDG_RUNTIME_DIR", "/tmp");
    if (!Deno.env.get("DENO_WEBGPU_BACKEND")) Deno.env.set("DENO_WEBGPU_BACKEND", "vulkan");
  } catch {
    // Without the right to change the environment the driver's default stands.
  }
}

async function grants(gpu: GPU, request: GPURequestAdapterOptions, feature: string): Promise<boolean> {
  try {
    const adapter = await gpu.requestAdapter(request);
    const probe = await adapter?.requestDevice({ requiredFeatures: [feature as GPUFeatureName] });
    probe?.destroy();
    return probe !== undefined;
  } catch {
    return false;
  }
}

/** An open adapter, made by `openDevice`; disposing of it frees all memory taken through it. */
export class Device implements Disposable {
  #capabilities: Capabilities;
  readonly name: string;
  readonly info: GPUAdapterInfo;
  readonly features: readonly string[];
  /** Picks the kernels of programs compiled from now on. Without one each op's own best guess is taken. */
  chooser: Chooser | null = null;
  /** Identifies the board, where it is known. */
  board: string | null = null;
  #bytes = 0;
  #peakBytes = 0;
  /** Bytes uploaded since uploads were last sent on their own. */
  #unsent = 0;
  #failure: Error | null = null;
  #lost = false;
  #disposed = false;
  readonly #buffers = new Map<GPUBuffer, number>();
  readonly #textures = new Map<GPUTexture, number>();
  readonly #pipelines = new Map<string, GPUComputePipeline>();
  readonly #subgroups: SubgroupSupport;
  #downloads: Downloads | null = null;

  constructor(readonly gpu: GPUDevice, adapter: GPUAdapter, features: readonly string[], subgroups: SubgroupSupport) {
    this.info = adapter.info;
    this.name = adapter.info.description || adapter.info.device || "unnamed adapter";
    this.features = features;
    this.#subgroups = subgroups;
    this.#capabilities = {
      cpu: adapter.info.isFallbackAdapter,
      subgroupSize: subgroups.size,
      f16: features.includes("shader-f16"),
      loopIterations: adapter.info.isFallbackAdapter ? CPU_LOOP_ITERATIONS : Infinity,
      limits: gpu.limits,
    };
    gpu.addEventListener("uncapturederror", (event) => this.fail((event as GPUUncapturedErrorEvent).error.message));
    gpu.lost.then((info) => {
      if (this.#disposed) return;
      this.#lost = true;
      this.fail(`the device was lost: ${info.message || info.reason}`);
    });
  }

  get capabilities(): Capabilities {
    return this.#capabilities;
  }

  /** Keeps what is compiled and laid out from now on within limits below the adapter's own. */
  restrict(limits: Partial<Record<typeof LIMITS[number], number>>): void {
    const own = LIMITS.map((name) => [name, this.gpu.limits[name]]);
    this.#capabilities = { ...this.#capabilities, limits: { ...Object.fromEntries(own), ...limits } };
  }

  /** Bytes of all buffers and textures that stand now. */
  get bytes(): number {
    return this.#bytes;
  }

  /** The most bytes that stood at once. */
  get peakBytes(): number {
    return this.#peakBytes;
  }

  /** Remembers the first device error; every later use of the device throws it. */
  fail(error: string | Error): void {
    this.#failure ??= typeof error === "string" ? new Error(`GPU error on ${this.name}: ${error}`) : error;
  }

  /** Runs what may fail: an error of the device meanwhile is thrown here, and the device goes on; a lost one doesn't. */
  async attempt<T>(work: () => Promise<T>): Promise<T> {
    this.check();
    const filters: GPUErrorFilter[] = ["validation", "out-of-memory", "internal"];
    for (const filter of filters) this.gpu.pushErrorScope(filter);
    const errors: unknown[] = [];
    const result = await work().catch((error) => void errors.push(error));
    for (const _ of filters) {
      const error = await this.gpu.popErrorScope();
      if (error !== null) errors.push(new Error(error.message));
    }
    if (this.#failure !== null) errors.push(this.#failure);
    if (!this.#lost) this.#failure = null;
    if (errors.length > 0) throw errors[0];
    return result as T;
  }

  /** Throws the first error the device reported. */
  check(): void {
    if (this.#disposed) throw new Error(`Cannot use ${this.name}: the device was disposed`);
    if (this.#failure !== null) throw this.#failure;
  }

  /** A zeroed buffer of `size` bytes rounded up to 16. Destroy it with `destroy`. */
  createBuffer(size: number, label: string, usage?: GPUBufferUsageFlags): GPUBuffer {
    this.check();
    const bytes = Math.max(16, Math.ceil(size / 16) * 16);
    const limit = this.gpu.limits.maxBufferSize;
    if (bytes > limit) {
      throw new RangeError(`Cannot make buffer ${label} of ${bytes} bytes: ${this.name} allows ${limit}`);
    }
    usage ??= GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
    const buffer = this.#allocate(label, bytes, () => this.gpu.createBuffer({ size: bytes, label, usage }));
    this.#buffers.set(buffer, bytes);
    return buffer;
  }

  /** A texture that copies write and shaders read. */
  createTexture(width: number, height: number, format: GPUTextureFormat): GPUTexture {
    this.check();
    const bytes = width * height * 16;
    const usage = GPUTextureUsage.STORAGE_BINDING | GPUTextureUsage.COPY_DST;
    const label = `${format} ${width}x${height}`;
    const texture = this.#allocate(
      label,
      bytes,
      () => this.gpu.createTexture({ size: [width, height], format, usage }),
    );
    this.#textures.set(texture, bytes);
    return texture;
  }

  #allocate<T>(label: string, bytes: number, create: () => T): T {
    const held = this.#bytes;
    this.gpu.pushErrorScope("out-of-memory");
    const made = create();
    this.gpu.popErrorScope().then((error) => {
      if (error === null) return;
      const message = `${this.name} has no memory for ${label} (${bytes} bytes, ${held} stand): ${error.message}`;
      this.fail(new OutOfMemoryError(message, held));
    });
    this.#bytes += bytes;
    this.#peakBytes = Math.max(this.#peakBytes, this.#bytes);
    return made;
  }

  /** Frees buffers and textures made here at once. */
  destroy(...resources: readonly (GPUBuffer | GPUTexture)[]): void {
    for (const resource of resources) {
      const owners = resource instanceof GPUBuffer ? this.#buffers : this.#textures;
      const bytes = (owners as Map<unknown, number>).get(resource);
      if (bytes === undefined) continue;
      (owners as Map<unknown, number>).delete(resource);
      this.#bytes -= bytes;
      resource.destroy();
    }
  }

  /** Compiles a shader's `main` once per text and layout. Throws an Error with the compiler's message. */
  async pipeline(
    label: string,
    text: string,
    entries: readonly GPUBindGroupLayoutEntry[],
  ): Promise<GPUComputePipeline> {
    const code = text.includes("subgroup") ? this.#subgroups.directive + text : text;
    const key = JSON.stringify(entries) + code;
    const known = this.#pipelines.get(key);
    if (known !== undefined) return known;
    this.check();
    this.gpu.pushErrorScope("validation");
    const module = this.gpu.createShaderModule({ code, label });
    const layout = this.gpu.createPipelineLayout({
      bindGroupLayouts: [this.gpu.createBindGroupLayout({ entries: [...entries] })],
    });
    const pipeline = this.gpu.createComputePipeline({ label, layout, compute: { module, entryPoint: "main" } });
    const error = await this.gpu.popErrorScope();
    if (error !== null) throw new Error(`Cannot compile kernel ${label}: ${error.message}`);
    this.#pipelines.set(key, pipeline);
    return pipeline;
  }

  /** Copies `data` to the GPU. Throws RangeError where it doesn't fit or isn't a multiple of 4 bytes. */
  upload(slice: BufferSlice, data: ArrayBufferView, at = 0): void {
    this.check();
    if (at + data.byteLength > slice.size) {
      throw new RangeError(`Cannot upload ${data.byteLength} bytes at ${at}: the slice holds ${slice.size}`);
    }
    if (data.byteLength % 4 !== 0 || at % 4 !== 0) {
      throw new RangeError(`Cannot upload ${data.byteLength} bytes at ${at}: both must be multiples of 4`);
    }
    for (let from = 0; from < data.byteLength; from += UPLOAD_BYTES) {
      const size = Math.min(UPLOAD_BYTES, data.byteLength - from);
      const bytes = new Uint8Array(data.buffer as ArrayBuffer, data.byteOffset + from, size);
      this.gpu.queue.writeBuffer(slice.buffer, slice.offset + at + from, bytes);
      this.#unsent += size;
      if (this.#unsent < UPLOAD_BYTES) continue;
      this.gpu.queue.submit([]);
      this.#unsent = 0;
    }
  }

  /** Reads slices back, in order; all that fit in one chunk share one wait. Blocks the thread until the GPU is idle. */
  download(slices: readonly BufferSlice[]): Promise<ArrayBuffer[]> {
    return (this.#downloads ??= new Downloads(this)).read(slices);
  }

  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.destroy(...this.#buffers.keys(), ...this.#textures.keys());
    this.#disposed = true;
    this.gpu.destroy();
  }
}
