/**
 * Measures how long commands take on a device: by its timestamps where they agree with the wall clock, else by the wall
 * clock. It knows no op, and not what is measured for which end.
 */
import type { Command } from "./assemble.ts";
import type { Device } from "./device.ts";
import { submit } from "./encode.ts";
import { Graph } from "./graph.ts";
import { fill } from "./primitives.ts";
import { compile, type Program } from "./program.ts";
import { createStore } from "./store.ts";

/** Work that the clocks are compared on: long enough for both, short enough to do thrice. */
const CALIBRATION = { elements: 1 << 18, milliseconds: 15, tries: 3, tolerance: 0.2 };

/** Dispatches measured in one submit: a query set holds 4,096 timestamps, two a dispatch. */
const DISPATCHES = 2000;

/** Opens a stopwatch: tries the device's timestamps once against the wall clock. */
export async function openStopwatch(device: Device): Promise<Stopwatch> {
  const graph = new Graph();
  const mark = fill(graph, [CALIBRATION.elements], 1);
  using store = createStore(device);
  const program = await compile(device, graph, { mark }, store, { choose: () => 0 });
  const stopwatch = new Stopwatch(device, program);
  await stopwatch.calibrate();
  return stopwatch;
}

/** Made by `openStopwatch`; disposing of it frees its buffers. */
export class Stopwatch implements Disposable {
  /** Milliseconds a tick of the device's clock takes; null where its timestamps aren't to be trusted. */
  #tick: number | null = null;
  /** Milliseconds that submitting and waiting take with nothing to do. */
  #overhead = 0;
  readonly #small: GPUBuffer;

  constructor(readonly device: Device, private readonly work: Program) {
    this.#small = device.createBuffer(16, "stopwatch");
  }

  /** `timestamps` or `wall clock`. */
  get clock(): "timestamps" | "wall clock" {
    return this.#tick === null ? "wall clock" : "timestamps";
  }

  /** Finds out what submitting costs and what a tick is. */
  async calibrate(): Promise<void> {
    await this.#wall(this.work.commands); // compiles, and maps the staging buffer for the first time
    const idle: number[] = [];
    for (let i = 0; i < 5; i++) idle.push(await this.#wall([]));
    this.#overhead = Math.min(...idle);
    if (!this.device.features.includes("timestamp-query")) return;
    const once = Math.max(0.01, await this.time(this.work.commands));
    const few = Math.ceil(CALIBRATION.milliseconds / once);
    for (let i = 0; i < CALIBRATION.tries && this.#tick === null; i++) {
      const short = await this.#bothClocks(few);
      const long = await this.#bothClocks(3 * few);
      const tick = long.wall / long.ticks;
      const steady = Math.abs(short.wall / short.ticks / tick - 1) < CALIBRATION.tolerance;
      if (steady && tick > 0 && Number.isFinite(tick)) this.#tick = tick;
    }
  }

  async #bothClocks(times: number): Promise<{ wall: number; ticks: number }> {
    const start = performance.now();
    const ticks = await this.#ticks(repeated(this.work.commands, times));
    return { wall: performance.now() - start - this.#overhead, ticks };
  }

  /** Milliseconds of the commands, `times` over, submitted as one, from the first one's start to the last one's end. */
  async time(commands: readonly Command[], times = 1): Promise<number> {
    const list = repeated(commands, times);
    if (this.#tick !== null) return await this.#ticks(list) * this.#tick;
    return Math.max(0, await this.#wall(list) - this.#overhead);
  }

  /** Milliseconds of each command. Runs them all, in their order. */
  async each(commands: readonly Command[]): Promise<number[]> {
    const result: number[] = [];
    for (const part of parts(commands, DISPATCHES)) {
      result.push(...(this.#tick === null ? await this.#eachByWall(part) : await this.#eachByTicks(part, this.#tick)));
    }
    return result;
  }

  async #eachByWall(commands: readonly Command[]): Promise<number[]> {
    const result: number[] = [];
    for (const command of commands) {
      const idle = command.kind === "cut";
      result.push(idle ? 0 : Math.max(0, await this.#wall([command]) - this.#overhead));
    }
    return result;
  }

  /** A dispatch takes from its pass's start to its end; copies take what lies between passes, by their bytes. */
  async #eachByTicks(commands: readonly Command[], tick: number): Promise<number[]> {
    const stamps = await this.#stamps(commands);
    const result = commands.map(() => 0);
    let dispatch = 0;
    let copies: number[] = [];
    commands.forEach((command, i) => {
      if (command.kind === "copy" || command.kind === "texture") copies.push(i);
      if (command.kind !== "dispatch") return;
      dispatch++; // the first is the mark
      result[i] = (stamps[2 * dispatch + 1] - stamps[2 * dispatch]) * tick;
      const gap = (stamps[2 * dispatch] - stamps[2 * dispatch - 1]) * tick;
      const bytes = copies.reduce((sum, copy) => sum + copiedBytes(commands[copy]), 0);
      for (const copy of copies) result[copy] = gap * copiedBytes(commands[copy]) / bytes;
      copies = [];
    });
    return result;
  }

  /** Ticks between the end of a mark before the commands and the start of one after them. */
  async #ticks(commands: readonly Command[]): Promise<number> {
    const last = commands.reduce((sum, { kind }) => sum + Number(kind === "dispatch"), 1);
    const stamps = await this.#stamped([...this.work.commands, ...commands, ...this.work.commands], 2, (dispatch) => {
      if (dispatch === 0) return { endOfPassWriteIndex: 0 };
      return dispatch === last ? { beginningOfPassWriteIndex: 1 } : undefined;
    });
    return stamps[1] - stamps[0];
  }

  /** Start and end of a mark and of every dispatch after it. */
  #stamps(commands: readonly Command[]): Promise<number[]> {
    const dispatches = commands.reduce((sum, { kind }) => sum + Number(kind === "dispatch"), 1);
    return this.#stamped([...this.work.commands, ...commands], 2 * dispatches, (dispatch) => ({
      beginningOfPassWriteIndex: 2 * dispatch,
      endOfPassWriteIndex: 2 * dispatch + 1,
    }));
  }

  async #stamped(
    commands: readonly Command[],
    stamps: number,
    indices: (dispatch: number) => Omit<GPUComputePassTimestampWrites, "querySet"> | undefined,
  ): Promise<number[]> {
    const { device } = this;
    const querySet = device.gpu.createQuerySet({ type: "timestamp", count: stamps });
    const usage = GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC;
    const buffer = device.createBuffer(stamps * 8, "timestamps", usage);
    submit(device, commands, {
      stamp(dispatch) {
        const writes = indices(dispatch);
        return writes && { querySet, ...writes };
      },
    });
    const encoder = device.gpu.createCommandEncoder();
    encoder.resolveQuerySet(querySet, 0, stamps, buffer, 0);
    device.gpu.queue.submit([encoder.finish()]);
    const [bytes] = await device.download([{ buffer, offset: 0, size: stamps * 8 }]);
    device.destroy(buffer);
    querySet.destroy();
    const values = new BigUint64Array(bytes);
    return Array.from(values, (value) => Number(value - values[0]));
  }

  /** Milliseconds from submitting to the end of a wait, by the wall clock. */
  async #wall(commands: readonly Command[]): Promise<number> {
    const start = performance.now();
    submit(this.device, commands);
    await this.device.download([{ buffer: this.#small, offset: 0, size: 4 }]);
    return performance.now() - start;
  }

  [Symbol.dispose](): void {
    this.work[Symbol.dispose]();
    this.device.destroy(this.#small);
  }
}

function repeated(commands: readonly Command[], times: number): Command[] {
  return Array.from({ length: times }, () => commands).flat();
}

/** Cuts a list so that no part has more than `limit` dispatches. */
function parts(commands: readonly Command[], limit: number): Command[][] {
  const result: Command[][] = [[]];
  let dispatches = 0;
  for (const command of commands) {
    if (command.kind === "dispatch" && ++dispatches > limit) {
      result.push([]);
      dispatches = 1;
    }
    result.at(-1)!.push(command);
  }
  return result;
}

/** Bytes a copy reads. */
export function copiedBytes(command: Command): number {
  if (command.kind === "copy") return command.to.size;
  return command.kind === "texture" ? command.to.width * command.to.height * 16 : 0;
}
