/**
 * Where the time of programs goes: every kernel measured in its place, gathered by label, beside what the adapter could do.
 * It knows no op: what a call computes and moves is the op's own word.
 */
import type { Command } from "./assemble.ts";
import type { Device } from "./device.ts";
import type { Dispatch } from "./graph.ts";
import type { Step } from "./plan.ts";
import type { Program } from "./program.ts";
import { copiedBytes, openStopwatch, type Stopwatch } from "./stopwatch.ts";

/** What an adapter was seen to do at its best, in a second. */
export interface Roofline {
  readonly flops: number;
  readonly bytes: number;
}

/** All dispatches of one label, or all copies of a kind. */
export interface ProfileRow {
  readonly label: string;
  readonly count: number;
  readonly milliseconds: number;
  readonly flops: number;
  readonly bytes: number;
  /** Milliseconds it would take at the roofline. */
  readonly ideal: number;
  /** Whether arithmetic, not memory, takes most of `ideal`. */
  readonly arithmetic: boolean;
}

/** A part of a program's run, measured. */
interface Measured {
  readonly label: string;
  readonly milliseconds: number;
  readonly flops: number;
  readonly bytes: number;
}

/** Measures programs instead of running them; the stopwatch stays the caller's. */
export class Profiler {
  readonly #parts: Measured[] = [];
  #turn: Promise<void> = Promise.resolve();

  constructor(readonly stopwatch: Stopwatch) {}

  /** Runs a program as `program.run(inputs)` would, each command measured, after those begun before. */
  run(program: Program, inputs?: Readonly<Record<string, ArrayBufferView>>): void {
    this.#turn = this.#turn.then(async () => {
      let commands: readonly Command[] = [];
      const times = await program.runBy((all) => {
        commands = all;
        return this.stopwatch.each(all);
      }, inputs);
      this.#parts.push(...attribute(program.steps, commands, times));
    });
  }

  /** Waits until all that was begun is measured. */
  async settled(): Promise<void> {
    await this.#turn;
  }

  /** Everything measured up to now, longest first. */
  rows(roofline: Roofline): ProfileRow[] {
    const byLabel = Map.groupBy(this.#parts, ({ label }) => label);
    const rows = [...byLabel].map(([label, parts]) => {
      const sum = (value: (part: Measured) => number) => parts.reduce((total, part) => total + value(part), 0);
      const atPeak = (part: Measured) => 1000 * part.flops / roofline.flops;
      const atBandwidth = (part: Measured) => 1000 * part.bytes / roofline.bytes;
      return {
        label,
        count: parts.length,
        milliseconds: sum(({ milliseconds }) => milliseconds),
        flops: sum(({ flops }) => flops),
        bytes: sum(({ bytes }) => bytes),
        ideal: sum((part) => Math.max(atPeak(part), atBandwidth(part))),
        arithmetic: sum(atPeak) > sum(atBandwidth),
      };
    });
    return rows.sort((a, b) => b.milliseconds - a.milliseconds);
  }
}

/** Opens a profiler with a stopwatch of its own. */
export async function openProfiler(device: Device): Promise<Profiler & Disposable> {
  const stopwatch = await openStopwatch(device);
  return Object.assign(new Profiler(stopwatch), { [Symbol.dispose]: () => stopwatch[Symbol.dispose]() });
}

/** Gives a call's operations and bytes to its dispatches by their share of its time; a copy reads and writes its bytes. */
function attribute(steps: readonly Step[], commands: readonly Command[], times: readonly number[]): Measured[] {
  const stepOf = new Map<Dispatch, Step>();
  for (const step of steps) for (const dispatch of step.dispatches) stepOf.set(dispatch, step);
  const spent = new Map<Step, number>();
  commands.forEach((command, i) => {
    if (command.kind !== "dispatch") return;
    const step = stepOf.get(command.dispatch)!;
    spent.set(step, (spent.get(step) ?? 0) + times[i]);
  });
  return commands.flatMap((command, i): Measured[] => {
    const milliseconds = times[i];
    if (command.kind === "cut") return [];
    if (command.kind !== "dispatch") {
      const label = command.kind === "texture" ? "copy to texture" : "copy";
      return [{ label, milliseconds, flops: 0, bytes: 2 * copiedBytes(command) }];
    }
    const { call } = stepOf.get(command.dispatch)!;
    const share = milliseconds / (spent.get(stepOf.get(command.dispatch)!) || 1);
    const { flops, bytes } = call.op.cost(call);
    return [{ label: command.dispatch.label, milliseconds, flops: flops * share, bytes: bytes * share }];
  });
}

/** The rows as a table; `whole` is what the programs took unmeasured, in milliseconds. */
export function formatProfile(rows: readonly ProfileRow[], roofline: Roofline, whole?: number): string {
  const total = rows.reduce((sum, { milliseconds }) => sum + milliseconds, 0);
  const lines = [["ms", "share", "count", "GFLOP/s", "GB/s", "of roofline", "kernel"]];
  for (const { label, count, milliseconds, flops, bytes, ideal } of rows) {
    lines.push([
      milliseconds.toFixed(2),
      percent(milliseconds / total),
      `${count}`,
      flops === 0 ? "" : (flops / milliseconds / 1e6).toFixed(1),
      (bytes / milliseconds / 1e6).toFixed(1),
      percent(ideal / milliseconds),
      label,
    ]);
  }
  const widths = lines[0].map((_, column) => Math.max(...lines.map((line) => line[column].length)));
  const table = lines.map((line) => {
    return line.map((cell, column) => column === line.length - 1 ? cell : cell.padStart(widths[column])).join("  ");
  });
  return [...table, ...summary(rows, total, roofline, whole)].join("\n");
}

function summary(rows: readonly ProfileRow[], total: number, roofline: Roofline, whole?: number): string[] {
  const peak = `${(roofline.flops / 1e9).toFixed(1)} GFLOP/s in its best product, ` +
    `${(roofline.bytes / 1e9).toFixed(1)} GB/s in copies`;
  const lines = [`roofline: ${peak}, measured here; bytes are those a call must move at least`];
  const arithmetic = rows.reduce((sum, row) => sum + (row.arithmetic ? row.milliseconds : 0), 0);
  const sums = `kernels' own time ${total.toFixed(1)} ms, ${arithmetic.toFixed(1)} of it bound by arithmetic`;
  if (whole === undefined) return [...lines, sums];
  const over = `whole step ${whole.toFixed(1)} ms: ${(whole / total).toFixed(2)} times all kernels, ` +
    `${(whole / arithmetic).toFixed(2)} times those bound by arithmetic`;
  return [...lines, sums, over];
}

function percent(share: number): string {
  return `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
}
