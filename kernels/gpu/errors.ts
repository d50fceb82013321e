/** The error a user can act on: one clear line and an exit code. It knows nothing of where it is printed. */

/** Exit codes: 1 something failed, 2 wrong usage, 3 no adapter, 4 no right to install or write. */
export class UserError extends Error {
  override readonly name = "UserError";
  constructor(message: string, readonly exitCode = 1) {
    super(message);
  }
}

/** A device that has no room for a buffer or texture. */
export class OutOfMemoryError extends Error {
  override readonly name = "OutOfMemoryError";
  /** @param held bytes that stood before, and were given. */
  constructor(message: string, readonly held: number) {
    super(message);
  }
}
