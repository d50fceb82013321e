/** SIGINT and SIGTERM as a wish the training loop can read. It knows no loop and ends no process itself. */

export interface Stop {
  /** Someone wants the run to end after the update at hand. */
  readonly requested: boolean;
  /** From now on the first signal is a wish; before, and the second time, it ends the process. */
  listen(): void;
  /** Takes the signals' handlers away. */
  [Symbol.dispose](): void;
}

const SIGNALS: readonly Deno.Signal[] = ["SIGINT", "SIGTERM"];

/** Handles the signals; `end` is to end the process at once. */
export function listenForStop(say: (line: string) => void, end: () => void): Stop {
  let listening = false;
  let requested = false;
  const hear = () => {
    if (!listening || requested) return end();
    requested = true;
    say("stopping after this step; once more stops now");
  };
  const heard = SIGNALS.filter((signal) => {
    try {
      Deno.addSignalListener(signal, hear);
      return true;
    } catch {
      return false; // not every system has every signal
    }
  });
  return {
    get requested() {
      return requested;
    },
    listen: () => void (listening = true),
    [Symbol.dispose]: () => heard.forEach((signal) => Deno.removeSignalListener(signal, hear)),
  };
}

/** For a process that another one tells when to end: a terminal's Ctrl-C reaches it too, and means the other. */
export function ignoreStop(): Stop {
  const stop = listenForStop(() => {}, () => {});
  return { ...stop, requested: false, listen: () => {} };
}
