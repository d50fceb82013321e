/**
 * A program: a graph made real on one device. Kernels chosen, memory planned, pipelines and bind groups built once; a run
 * encodes one static list of dispatches. It knows no op.
 */
import { Assembler, type Command, type CompileOptions, Memory, textureCopy } from "./assemble.ts";
import { draw, offers } from "./blueprint.ts";
import type { Device } from "./device.ts";
import { segments, submit } from "./encode.ts";
import { byteLength, type Graph, type Offer, type Tensor } from "./graph.ts";
import { megabytes, type Plan, type Step } from "./plan.ts";
import type { Store } from "./store.ts";
import { writtenBuffers } from "./textures.ts";

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
  const offered = offers(graph, roots, device.capabilities).map((offer) => ({ ...offer, keep: options.keep }));
  const chosen = await choose(device, offered, options);
  const steps = offered.map(({ call, candidates }, i): Step => ({ call, dispatches: candidates[chosen[i]] }));
  const blueprint = draw(graph, roots, steps, store.layout, device.capabilities, options);
  const memory = new Memory(device, store, blueprint, options.workspace);
  try {
    const { commands, completed } = await new Assembler(device, memory, options).assemble();
    return new Program(device, outputs, memory, commands, completed);
  } catch (error) {
    memory[Symbol.dispose]();
    throw error;
  }
}

/** The candidate of each offer: as the options say, else the device's chooser, else each op's own best guess. */
async function choose(device: Device, offers: readonly Offer[], options: CompileOptions): Promise<readonly number[]> {
  if (options.choose) return offers.map(({ call, candidates }) => options.choose!(call, candidates));
  return await device.chooser?.choose(offers) ?? offers.map(() => 0);
}

/** What `compile` made; disposing of it frees its own buffers and textures. */
export class Program implements Disposable {
  readonly #written: ReadonlySet<number>;

  constructor(
    readonly device: Device,
    readonly outputs: Readonly<Record<string, Tensor>>,
    private readonly memory: Memory,
    readonly commands: readonly Command[],
    private readonly completed: ReadonlyMap<Tensor, number>,
  ) {
    const { events, regionOf } = memory.blueprint;
    this.#written = writtenBuffers(events, regionOf);
  }

  get plan(): Plan {
    return this.memory.blueprint.plan;
  }

  /** Calls with the kernels they run by, in order. */
  get steps(): readonly Step[] {
    return this.memory.blueprint.steps;
  }

  /** Kernel launches in one run. */
  get dispatches(): number {
    return this.commands.filter((command) => command.kind === "dispatch").length;
  }

  /** Submits of one run: cut at boundaries, and where one would take the GPU too long. */
  get segments(): number {
    return 1 + this.commands.filter((command) => command.kind === "cut").length;
  }

  /** Names of the inputs a run sets. */
  get inputs(): readonly string[] {
    return [...this.memory.inputs.keys()];
  }

  /**
   * Bytes of the program's own buffers and textures; what stands in the store, kept textures too, or in a shared workspace
   * is not counted.
   */
  get bytes(): number {
    return this.memory.bytes;
  }

  /**
   * Writes the inputs and submits the whole list, in segments. Returns before the GPU is done. An input that isn't given
   * keeps its value of the run before.
   */
  run(inputs: Readonly<Record<string, ArrayBufferView>> = {}): void {
    this.runBy((commands) => submit(this.device, commands), inputs);
  }

  /** The same a segment at each step, which gives its number. It is a whole run only when it was iterated to its end. */
  launch(inputs: Readonly<Record<string, ArrayBufferView>> = {}): Generator<number> {
    return this.runBy((commands) => segments(this.device, commands), inputs);
  }

  /** The segment after which a boundary's value is there. */
  segmentOf(boundary: Tensor): number {
    const segment = this.completed.get(boundary.base);
    if (segment === undefined) throw new RangeError("Cannot tell a value's segment: it was no boundary of the program");
    return segment;
  }

  /** A run whose commands are submitted by `by`, which may measure them. */
  runBy<T>(by: (commands: readonly Command[]) => T, inputs: Readonly<Record<string, ArrayBufferView>> = {}): T {
    this.write(inputs);
    const result = by([...this.#refills(), ...this.commands]);
    for (const buffer of this.#written) this.memory.store.wrote(buffer);
    return result;
  }

  /** Writes inputs without running. */
  write(inputs: Readonly<Record<string, ArrayBufferView>>): void {
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
  }

  /** Copies to kept textures whose variables were written since. */
  #refills(): Command[] {
    return [...this.memory.kept].flatMap((kept) => {
      const from = this.memory.store.refill(kept);
      return from === null ? [] : [textureCopy(from, kept.view.rowBytes, kept.texture)];
    });
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
