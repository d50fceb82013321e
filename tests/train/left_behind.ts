/** What processes leave behind: others, files, shared memory. By way of `sh`, as /proc and /dev are closed to Deno itself. */

/** Processes with this text in their command line. */
export async function processes(text: string): Promise<{ readonly pid: number; readonly command: string }[]> {
  const list = await shell(
    String.raw`for p in /proc/[0-9]*; do echo "${"$"}{p#/proc/} $(tr '\0' ' ' < $p/cmdline)"; done 2> /dev/null`,
  );
  const lines = list.split("\n").filter((line) => line.includes(text));
  return lines.map((line) => ({ pid: parseInt(line), command: line.trim() }));
}

/** Whether a file is there, or `shm:/name` in POSIX shared memory. */
export async function isThere(path: string): Promise<boolean> {
  return await shell(`ls -d '${path.replace(/^shm:/, "/dev/shm")}' 2> /dev/null`) !== "";
}

async function shell(script: string): Promise<string> {
  const { stdout } = await new Deno.Command("sh", { args: ["-c", script] }).output();
  return new TextDecoder().decode(stdout);
}

/** Looks until it is so, for half a minute. */
export async function until<T>(find: () => T | Promise<T>): Promise<NonNullable<T>> {
  const end = performance.now() + 30_000;
  while (performance.now() < end) {
    const found = await find();
    if (found) return found;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  throw new Error(`waited in vain until ${find}`);
}
