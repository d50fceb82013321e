/** Turns of the event loop for work that never waits. It knows no work. */
import { setImmediate } from "node:timers";

/** Milliseconds after which messages must have had a chance. A timer takes one. */
const LONGEST = 10;

/**
 * Makes a function that gives the event loop a turn. Messages come in with timers only: Deno runs up to some 30 immediates
 * before it looks for messages, so that with steps of 0.3 s a new request or an abort would wait for seconds.
 */
export function createTurns(): () => Promise<void> {
  let last = performance.now();
  return async () => {
    if (performance.now() - last < LONGEST) return await new Promise((resolve) => setImmediate(() => resolve()));
    await new Promise<void>((resolve) => setTimeout(resolve, 0));
    last = performance.now();
  };
}
