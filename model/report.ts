/** How a command says that it failed. It knows no command. */
import { UserError } from "./errors.ts";

/**
 * Prints what went wrong in one line, with the stack where WGPT_DEBUG is set.
 *
 * @returns the exit code: the error's own where it is one that a user can act on, else 1.
 */
export function reportFailure(thrown: unknown): number {
  const error = cause(thrown);
  const message = `error: ${error instanceof Error ? error.message : error}`;
  if (Deno.env.get("WGPT_DEBUG")) console.error(error);
  else console.error(error instanceof UserError ? message : `${message}\nSet WGPT_DEBUG=1 to see where it comes from`);
  return error instanceof UserError ? error.exitCode : 1;
}

/** What failed first: closing things after a failure may fail as well. */
function cause(error: unknown): unknown {
  return error instanceof SuppressedError ? cause(error.suppressed) : error;
}
