/** How this program starts others of its own: by which command and with which permissions. It starts none. */

/** This Deno where it may be started by its path, else the PATH's: --allow-run=deno permits that, and no link's target. */
export function denoCommand(): string {
  const path = Deno.execPath();
  const { state } = Deno.permissions.querySync({ name: "run", command: path });
  return state === "granted" ? path : "deno";
}

/** What a task of deno.json permits, but for starting processes. */
export function permissionsOf(command: string): string[] {
  return command.split(" ").filter((word) => /^--(allow-(?!run)|no-prompt)/.test(word));
}
