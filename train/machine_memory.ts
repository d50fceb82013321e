/** How much memory the machine can give now. It knows no run. */

/** Bytes that programs can still take; null where nothing says. */
export function availableMemory(): number | null {
  try {
    return Deno.systemMemoryInfo().available;
  } catch {
    return fromProc();
  }
}

/** Linux tells without a right of its own, to whom may read files. */
function fromProc(): number | null {
  try {
    const [, kibibytes] = /^MemAvailable:\s+(\d+) kB$/m.exec(Deno.readTextFileSync("/proc/meminfo")) ?? [];
    return kibibytes === undefined ? null : Number(kibibytes) * 1024;
  } catch {
    return null;
  }
}
