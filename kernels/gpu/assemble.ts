/**
 * Turns a planned schedule into commands on one device: buffers and textures made, pipelines compiled, bind groups built,
 * copies placed, segments cut. It knows no op, and nothing of running.
 */
import type { BufferSlice, Device } from "./device.ts";
import { type Blueprint, type BlueprintOptions, bytesOf, uniformBytes } from "./blueprint.ts";
import {
  type Binding,
  byteLength,
  type Call,
  type Capabilities,
  type Dispatch,
  type Scratch,
  type Tensor,
} from "./graph.ts";
import type { KeptTexture, Store } from "./store.ts";
import { textureShape, viewOf } from "./textures.ts";
import { Workspace } from "./workspace.ts";

export interface CompileOptions extends BlueprintOptions {
  /** Picks one of an op's candidates. Default: the device's chooser, else the first, the op's own best guess. */
  readonly choose?: (call: Call, candidates: readonly (readonly Dispatch[])[]) => number;
  /** Values after whose making a segment ends: a gradient bucket is complete there. */
  readonly boundaries?: readonly Tensor[];
  /**
   * Memory shared with other programs that never run between a run of this one and the reading of its outputs. Default: the
   * program's own.
   */
  readonly workspace?: Workspace;
}

/** What a run encodes, in order. */
export type Command =
  | { readonly kind: "dispatch"; readonly dispatch: Dispatch; pipeline: GPUComputePipeline; group: GPUBindGroup }
  | { readonly kind: "copy"; readonly from: BufferSlice; readonly to: BufferSlice }
  | { readonly kind: "texture"; readonly from: BufferSlice; readonly rowBytes: number; readonly to: GPUTexture }
  | { readonly kind: "cut" };

export function textureCopy(from: BufferSlice, rowBytes: number, to: GPUTexture): Command {
  return { kind: "texture", from, rowBytes, to };
}

/** A submit should stay below this: drivers reset on long ones. */
const SEGMENT_SECONDS = 0.5;

/** Modest guesses of what an adapter does in a second, to cut segments by and to tune what matters first. */
const RATES = { cpu: { flops: 2e10, bytes: 3e9 }, gpu: { flops: 1e12, bytes: 1e11 } };

/** A modest guess of how long a call takes, in seconds. */
export function estimate(call: Call, { cpu }: Capabilities): number {
  const { flops, bytes } = call.op.cost(call);
  const rates = cpu ? RATES.cpu : RATES.gpu;
  return flops / rates.flops + bytes / rates.bytes;
}

/** The buffers and textures of one program. */
export class Memory implements Disposable {
  readonly slots: GPUBuffer[];
  readonly inputs = new Map<string, BufferSlice>();
  readonly textures: GPUTexture[];
  /** The program's own, where it shares none. */
  readonly #workspace: Workspace | null;
  readonly uniforms: GPUBuffer | null;
  readonly kept = new Set<KeptTexture>();

  constructor(readonly device: Device, readonly store: Store, readonly blueprint: Blueprint, shared?: Workspace) {
    const { inputs, uniforms } = blueprint;
    this.#workspace = shared === undefined ? new Workspace(device) : null;
    const { slots, textures } = (shared ?? this.#workspace!).take(blueprint);
    this.slots = slots;
    this.textures = textures;
    for (const [name, tensor] of inputs) {
      const size = byteLength(tensor);
      this.inputs.set(name, { buffer: device.createBuffer(size, name), offset: 0, size });
    }
    const usage = GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST;
    this.uniforms = uniforms === 0 ? null : device.createBuffer(uniforms, "uniforms", usage);
  }

  slice(tensor: Tensor | Scratch): BufferSlice {
    const place = this.blueprint.plan.place(tensor);
    if ("slot" in place) return { buffer: this.slots[place.slot], offset: 0, size: byteLength(tensor) };
    const { kind, name } = place.leaf.source as { kind: string; name: string };
    return kind === "input" ? this.inputs.get(name)! : this.store.get(name)!;
  }

  /** Bytes of the program's own buffers and textures. */
  get bytes(): number {
    const { inputs, uniforms, slots, textures } = bytesOf(this.blueprint);
    return inputs + uniforms + (this.#workspace === null ? 0 : slots + textures);
  }

  [Symbol.dispose](): void {
    const inputs = [...this.inputs.values()].map((slice) => slice.buffer);
    this.device.destroy(...inputs, ...(this.uniforms ? [this.uniforms] : []));
    this.#workspace?.[Symbol.dispose]();
  }
}

/** Turns a blueprint into commands: pipelines, bind groups, copies. */
export class Assembler {
  readonly #commands: Command[] = [];
  /** The segment in which each boundary is made. */
  readonly #completed = new Map<Tensor, number>();
  #uniformOffset = 0;

  constructor(readonly device: Device, readonly memory: Memory, readonly options: CompileOptions) {}

  async assemble(): Promise<{ commands: readonly Command[]; completed: ReadonlyMap<Tensor, number> }> {
    const boundaries = new Set(this.options.boundaries?.map((tensor) => tensor.base));
    let seconds = 0;
    let cuts = 0;
    const cut = () => {
      seconds = 0;
      if (this.#commands.at(-1)?.kind === "cut") return;
      this.#commands.push({ kind: "cut" });
      cuts++;
    };
    const { steps, plan } = this.memory.blueprint;
    for (const { call, dispatches } of steps) {
      for (const { from, to } of plan.copies.get(call) ?? []) {
        this.#commands.push({ kind: "copy", from: this.memory.slice(from), to: this.memory.slice(to) });
      }
      const expected = estimate(call, this.device.capabilities);
      for (const dispatch of dispatches) {
        await this.#dispatch(dispatch);
        seconds += expected / dispatches.length;
        if (seconds > SEGMENT_SECONDS) cut();
      }
      const made = call.outputs.filter((output) => boundaries.has(output));
      if (made.length > 0) cut();
      for (const output of made) this.#completed.set(output, cuts - 1);
    }
    if (this.#commands.at(-1)?.kind === "cut") this.#commands.pop();
    return { commands: this.#commands, completed: this.#completed };
  }

  async #dispatch(dispatch: Dispatch): Promise<void> {
    const { label, wgsl, bindings, uniforms } = dispatch;
    const layout = bindings.map((binding, index) => layoutEntry(binding, index));
    const entries = bindings.map((binding, index) => ({ binding: index, resource: this.#resource(binding) }));
    if (uniforms !== undefined) {
      layout.push({ binding: bindings.length, visibility: GPUShaderStage.COMPUTE, buffer: { type: "uniform" } });
      entries.push({ binding: bindings.length, resource: this.#uniform(uniforms) });
    }
    refuseMixedAccess(dispatch, entries);
    const pipeline = await this.device.pipeline(label, wgsl, layout);
    const group = this.device.gpu.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries });
    this.#commands.push({ kind: "dispatch", dispatch, pipeline, group });
  }

  #resource(binding: Binding): GPUBindingResource {
    const slice = rowsOf(binding, this.memory.slice(binding.tensor));
    const use = this.memory.blueprint.textures.uses.get(binding);
    if (use === undefined) {
      const limit = this.device.capabilities.limits.maxStorageBufferBindingSize;
      const size = Math.min(Math.ceil(slice.size / 16) * 16, slice.buffer.size - slice.offset);
      if (size > limit) throw new RangeError(`Cannot bind ${size} bytes: ${this.device.name} binds ${limit} at most`);
      return { buffer: slice.buffer, offset: slice.offset, size };
    }
    if ("kept" in use) {
      const kept = this.memory.store.keep(use.kept);
      this.memory.kept.add(kept);
      return kept.texture.createView();
    }
    const texture = this.memory.textures[use.texture];
    if (use.copy) {
      const { offset, rowBytes } = viewOf(binding)!;
      const whole = this.memory.slice(binding.tensor);
      this.#commands.push(textureCopy({ ...whole, offset: whole.offset + offset }, rowBytes, texture));
    }
    return texture.createView();
  }

  #uniform(values: readonly number[]): GPUBindingResource {
    const buffer = this.memory.uniforms!;
    const offset = this.#uniformOffset;
    const size = uniformBytes(values, this.device.capabilities.limits);
    this.#uniformOffset += size;
    this.device.upload({ buffer, offset, size }, new Uint32Array(values));
    return { buffer, offset, size: Math.max(16, Math.ceil(values.length / 4) * 16) };
  }
}

function layoutEntry(binding: Binding, index: number): GPUBindGroupLayoutEntry {
  const entry = { binding: index, visibility: GPUShaderStage.COMPUTE };
  const shape = textureShape(binding);
  if (shape !== null) return { ...entry, storageTexture: { access: "read-only", format: shape.format } };
  return { ...entry, buffer: { type: binding.access === "read" ? "read-only-storage" : "storage" } };
}

function rowsOf({ tensor, rows }: Binding, slice: BufferSlice): BufferSlice {
  if (rows === undefined) return slice;
  const rowBytes = byteLength(tensor) / tensor.shape[0];
  return { buffer: slice.buffer, offset: slice.offset + rows[0] * rowBytes, size: (rows[1] - rows[0]) * rowBytes };
}

/** WebGPU forbids one buffer to be read-only and writable in one dispatch; its own message doesn't name the kernel. */
function refuseMixedAccess({ label, bindings }: Dispatch, entries: readonly GPUBindGroupEntry[]): void {
  const access = new Map<GPUBuffer, string>();
  bindings.forEach((binding, index) => {
    const { buffer } = entries[index].resource as GPUBufferBinding;
    if (buffer === undefined) return;
    if ((access.get(buffer) ?? binding.access) !== binding.access) {
      throw new Error(`Cannot run ${label}: it binds buffer ${buffer.label} both to read and to write`);
    }
    access.set(buffer, binding.access);
  });
}
