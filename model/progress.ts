/** One line that says how far a long piece of work is, how fast it goes and when it ends. It knows nothing of the work. */
import { writeAllSync } from "./files.ts";

export interface ProgressOptions {
  readonly label: string;
  /** What `update` counts up to; undefined where nobody knows. */
  readonly total?: number;
  /** "bytes" are shown as MB; any other unit by its name. */
  readonly unit: string;
  /** Where the count starts, for work that was begun before. */
  readonly from?: number;
  /** Default: whether standard error is a terminal. */
  readonly terminal?: boolean;
  /** Default: standard error. */
  readonly write?: (text: string) => void;
  /** Seconds between two plain lines where there is no terminal. */
  readonly every?: number;
}

export interface Progress {
  /** Says that `done` of the total is done. Cheap: it prints ten times a second at most. */
  update(done: number, note?: string): void;
  /** Prints a line that stays, above the status line. */
  line(text: string): void;
  /** Replaces the status line by a last one, and leaves nothing where none is given. */
  finish(text?: string): void;
}

/** Says nothing. */
export const silent: Progress = { update() {}, line() {}, finish() {} };

const encoder = new TextEncoder();
/** Empties the terminal's line and goes back to its start. */
export const CLEAR = "\r\x1b[2K";

/** A status line that is rewritten on a terminal, and a plain line every few seconds elsewhere. */
export function progress(options: ProgressOptions): Progress {
  const terminal = options.terminal ?? Deno.stderr.isTerminal();
  const write = options.write ?? ((text: string) => writeAllSync(Deno.stderr, encoder.encode(text)));
  const interval = terminal ? 100 : (options.every ?? 5) * 1000;
  const from = options.from ?? 0;
  const start = performance.now();
  let printed = terminal ? -Infinity : start;
  return {
    update(done, note) {
      const now = performance.now();
      if (now - printed < interval) return;
      printed = now;
      const text = status(options, done, (done - from) / Math.max((now - start) / 1000, 1e-3), note);
      write(terminal ? CLEAR + fit(text) : text + "\n");
    },
    line: (text) => write(terminal ? CLEAR + text + "\n" : text + "\n"),
    finish(text) {
      if (terminal) write(CLEAR);
      if (text !== undefined) write(text + "\n");
    },
  };
}

function status({ label, total, unit }: ProgressOptions, done: number, perSecond: number, note?: string): string {
  const parts = [`${label} ${amount(done, total, unit)}`];
  if (perSecond > 0) parts.push(unit === "bytes" ? `${megabytes(perSecond)}/s` : `${short(perSecond)} ${unit}/s`);
  if (note) parts.push(note);
  if (total !== undefined && perSecond > 0) parts.push(`${duration((total - done) / perSecond)} left`);
  return parts.join(", ");
}

function amount(done: number, total: number | undefined, unit: string): string {
  const show = (value: number) => unit === "bytes" ? megabytes(value) : value.toLocaleString("en-US");
  if (total === undefined) return unit === "bytes" ? show(done) : `${show(done)} ${unit}`;
  const percent = total === 0 ? 100 : Math.min(100, Math.floor(100 * done / total));
  return `${percent}% (${show(done)} of ${show(total)}${unit === "bytes" ? "" : ` ${unit}`})`;
}

/** As much of a text as one line of the terminal holds: a line that wraps can't be rewritten. */
export function fit(text: string): string {
  let columns = 80;
  try {
    columns = Deno.consoleSize().columns || columns;
  } catch {
    // no size known
  }
  return text.length < columns ? text : text.slice(0, columns - 1);
}

/** 12.3 MB: millions of bytes. */
export function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

function short(value: number): string {
  return value >= 100 ? Math.round(value).toLocaleString("en-US") : value.toPrecision(3);
}

/** 45 s, 3 min 20 s, 2 h 5 min. */
export function duration(seconds: number): string {
  const whole = Math.max(0, Math.ceil(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor(whole % 3600 / 60)} min`;
}
