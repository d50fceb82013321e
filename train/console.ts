/** What a run says while it works: lines that stay, and one status line. It knows nothing of what is said. */
import { writeAllSync } from "../model/files.ts";
import { CLEAR, fit } from "../model/progress.ts";

export interface Console {
  /** Where the work stands: rewritten in place on a terminal, elsewhere a line every few seconds. */
  status(text: string): void;
  /** A line that stays. */
  line(text: string): void;
  /** Text that goes on where the last ended, for a sample that streams. */
  write(text: string): void;
}

export interface ConsoleOptions {
  readonly terminal?: boolean;
  readonly print?: (text: string) => void;
  /** Seconds between two status lines where there is no terminal. */
  readonly every?: number;
  /** Another process may have left its status line on the terminal. Default: false. */
  readonly shared?: boolean;
}

const encoder = new TextEncoder();

/** A console on standard output. */
export function createConsole(options: ConsoleOptions = {}): Console {
  const terminal = options.terminal ?? Deno.stdout.isTerminal();
  const print = options.print ?? ((text: string) => writeAllSync(Deno.stdout, encoder.encode(text)));
  const every = (options.every ?? 5) * 1000;
  const shared = terminal && options.shared === true;
  let last = -Infinity;
  let standing = false;
  const cleared = () => {
    const clear = standing || shared ? CLEAR : "";
    standing = false;
    return clear;
  };
  return {
    status(text) {
      const now = performance.now();
      if (now - last < (terminal ? 50 : every)) return;
      last = now;
      if (!terminal) return print(`${text}\n`);
      print(CLEAR + fit(text));
      standing = true;
    },
    line: (text) => print(`${cleared()}${text}\n`),
    write: (text) => print(cleared() + text),
  };
}

/** Text a model made, without what a terminal would obey. */
export function printable(text: string): string {
  // deno-lint-ignore no-control-regex -- control characters are what this is about
  return text.replaceAll(/[\x00-\x08\x0b-\x1f\x7f-\x9f]/g, "\ufffd");
}
