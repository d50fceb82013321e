/** SIGINT and SIGTERM as a wish the training loop can read. It knows no loop and ends no process itself. */

export interface Stop {
  /** Someone wants the run to end after the update at hand. */
  readonly requested: boolean;
  /** From now on the first signal is a wish; before, it ends the process. */
  listen(): void;
  /** Takes the signals' handlers away. */
  [Symbol.dispose](): void;
}

/** Handles the signals; `end` is to end the process at once, also at the second signal. */
export function listenForStop(say: (line: string) => void, end: () => void): Stop {
  return listen({ wish: () => say("stopping after this step; once more stops now"), end, again: end });
}

/**
 * For a rank's process: SIGTERM, which its supervisor sends, is the wish, however often it comes. A terminal's Ctrl-C reaches
 * ranks too, and means the supervisor.
 */
export function listenToSupervisor(wish: () => void, end: () => void): Stop {
  return listen({ wish, end, again: () => {}, SIGINT: () => {} });
}

/** For a rank that follows another one, which is told. */
export function ignoreStop(): Stop {
  const ignore = () => {};
  return listen({ wish: ignore, end: ignore, again: ignore, SIGINT: ignore, SIGTERM: ignore });
}

interface Hearing {
  /** At the first signal, once it is listened for. */
  readonly wish: () => void;
  /** At a signal before. */
  readonly end: () => void;
  /** At a signal after the first. */
  readonly again: () => void;
  /** At this signal, in place of all that. */
  readonly SIGINT?: () => void;
  readonly SIGTERM?: () => void;
}

/** `deno task` passes on a Ctrl-C that the terminal has sent to both: what comes so soon is no second wish. */
const ECHO_MS = 500;

function listen({ wish, end, again, ...others }: Hearing): Stop {
  let listening = false;
  let first: number | undefined;
  const hear = () => {
    if (!listening) return end();
    if (first !== undefined) return performance.now() - first < ECHO_MS ? undefined : again();
    first = performance.now();
    wish();
  };
  const handlers = { SIGINT: hear, SIGTERM: hear, ...others };
  const heard = (Object.keys(handlers) as (keyof typeof handlers)[]).filter((signal) => {
    try {
      Deno.addSignalListener(signal, handlers[signal]);
      return true;
    } catch {
      return false; // not every system has every signal
    }
  });
  return {
    get requested() {
      return first !== undefined;
    },
    listen: () => void (listening = true),
    [Symbol.dispose]: () => heard.forEach((signal) => Deno.removeSignalListener(signal, handlers[signal])),
  };
}
