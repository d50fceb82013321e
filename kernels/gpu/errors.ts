/** The error a user can act on: one clear line and an exit code. It knows nothing of where it is printed. */

/** Exit codes: 1 something failed, 2 wrong usage, 3 no adapter, 4 no right to install or write. */
export class UserError extends Error {
  override readonly name = "UserError";
  constructor(message: string, readonly exitCode = 1) {
    super(message);
  }
}
