/**
 * A program: a graph made real on one device. Kernels chosen, memory planned, pipelines and bind groups built once; a run
 * encodes one static list of dispatches. It knows no op.
 */
import { Assembler, type Command, type CompileOptions, Memory } from "./assemble.ts";
import type { Device } from "./device.ts";
import { byteLength, type Graph, type Tensor } from "./graph.ts";
import { megabytes, type Plan, plan, schedule, type Step } from "./plan.ts";
import type { Store } from "./store.ts";

export type { CompileOptions } from "./assemble.ts";

/**
 * Makes a graph's outputs, and every write to a variable, runnable.
 *
 * @throws RangeError for a variable that the store lacks or holds in another size.
 */
export async function compile(
  device: Device,
  graph: Graph,
  outputs: Readonly<Record<string, Tensor>>,
  store: Store,
  options: CompileOptions = {},
): Promise<Program> {
  const roots = Object.values(outputs);
  const steps = schedule(graph.calls, roots).map((call): Step => {
    const candidates = call.op.kernels(call, device.capabilities);
    return { call, dispatches: candidates[options.choose?.(call, candidates) ?? 0] };
  });
  const planned = plan(steps, roots);
  const memory = new Memory(device, store, planned, graph);
  try {
    const commands = await new Assembler(device, memory, steps, planned, options).assemble();
    return new Program(device, outputs, memory, commands, planned);
  } catch (error) {
    memory[Symbol.dispose]();
    throw error;
  }
}

/** What `compile` made; disposing of it frees its own buffers and textures. */
export class Program implements Disposable {
  constructor(
    readonly device: Device,
    readonly outputs: Readonly<Record<string, Tensor>>,
    private readonly memory: Memory,
    private readonly commands: readonly Command[],
    readonly plan: Plan,
  ) {}

  /** Kernel launches in one run. */
  get dispatches(): number {
    return this.commands.filter((command) => command.kind === "dispatch").length;
  }

  /** Names of the inputs a run sets. */
  get inputs(): readonly string[] {
    return [...this.memory.inputs.keys()];
  }

  /** Bytes of the program's own buffers and textures; the store's variables are not counted. */
  get bytes(): number {
    return this.memory.bytes;
  }

  /**
   * Writes the inputs and submits the whole list, in segments. Returns before the GPU is done. An input that isn't given
   * keeps its value of the run before.
   */
  run(inputs: Readonly<Record<string, ArrayBufferView>> = {}, onSegment?: (index: number) => void): void {
    this.device.check();
    for (const [name, data] of Object.entries(inputs)) {
      const slice = this.memory.inputs.get(name);
      if (slice === undefined) throw new RangeError(`Cannot set input ${name}: the graph has none of that name`);
      if (data.byteLength !== slice.size) {
        throw new RangeError(
          `Cannot set input ${name}: it has ${data.byteLength} bytes, the graph wants ${slice.size}`,
        );
      }
      this.device.upload(slice, data);
    }
    let encoder = this.device.gpu.createCommandEncoder();
    let pass: GPUComputePassEncoder | null = null;
    let segment = 0;
    const submit = () => {
      pass?.end();
      pass = null;
      this.device.gpu.queue.submit([encoder.finish()]);
      onSegment?.(segment++);
    };
    for (const command of this.commands) {
      if (command.kind === "dispatch") {
        pass ??= encoder.beginComputePass();
        pass.setPipeline(command.pipeline);
        pass.setBindGroup(0, command.group);
        pass.dispatchWorkgroups(...command.dispatch.workgroups);
        continue;
      }
      if (command.kind === "cut") {
        submit();
        encoder = this.device.gpu.createCommandEncoder();
        continue;
      }
      pass?.end();
      pass = null;
      encodeCopy(encoder, command);
    }
    submit();
  }

  /** Outputs of the last run, by name, in one wait. */
  read(...names: readonly string[]): Promise<ArrayBuffer[]> {
    return this.device.download(names.map((name) => {
      const output = this.outputs[name];
      if (output === undefined) throw new RangeError(`Cannot read ${name}: the program has no such output`);
      return { ...this.memory.slice(output), size: byteLength(output) };
    }));
  }

  /** The dispatch list, a line each. */
  toString(): string {
    const lines = this.commands.map((command) => {
      if (command.kind === "cut") return "--- submit";
      if (command.kind === "copy") return `copy ${command.to.size} bytes`;
      if (command.kind === "texture") return `texture ${command.to.width}x${command.to.height}`;
      const { label, workgroups, bindings } = command.dispatch;
      const operands = bindings.map(({ tensor }) => `(${tensor.shape.join(", ")})`).join(" ");
      return `${label} [${workgroups.join(", ")}] ${operands}`;
    });
    return [...lines, `${this.dispatches} dispatches; ${this.plan}; ${megabytes(this.bytes)} held`].join("\n");
  }

  [Symbol.dispose](): void {
    this.memory[Symbol.dispose]();
  }
}

function encodeCopy(encoder: GPUCommandEncoder, command: Extract<Command, { kind: "copy" | "texture" }>): void {
  if (command.kind === "copy") {
    const { from, to } = command;
    encoder.copyBufferToBuffer(from.buffer, from.offset, to.buffer, to.offset, to.size);
    return;
  }
  const { from, rowBytes, to } = command;
  const source = { buffer: from.buffer, offset: from.offset, bytesPerRow: rowBytes, rowsPerImage: to.height };
  encoder.copyBufferToTexture(source, { texture: to }, [to.width, to.height]);
}
