/**
 * Memory that processes of one machine share: POSIX shared memory, or a temporary file, that each maps by FFI. It knows no
 * rank and no barrier.
 */
import { UserError } from "../model/errors.ts";
import type { SharedRegion } from "./shared_memory.ts";

/** A shared file; disposing of it removes its name, and what has it mapped keeps the memory. */
export interface SharedFile extends Disposable {
  /** `shm:/name` in POSIX shared memory, else a path. */
  readonly name: string;
}

/** What names in POSIX shared memory begin with here. */
const SHM = "shm:";

const O_RDWR = 2;
const [O_CREAT, O_EXCL] = [0o100, 0o200]; // Linux
const PROT_READ_WRITE = 3;
const MAP_SHARED = 1;
const MAP_FAILED = 0xffff_ffff_ffff_ffffn;

/**
 * Makes a file of zeros, for this user alone. Its memory is taken at once: a page that can't be had later would kill whoever
 * touches it. Where POSIX shared memory has no room (containers often give it 64 MB), and on systems but Linux, it lies
 * among the temporary files.
 *
 * @throws UserError where processes can't share memory on this system.
 */
export function createSharedFile(bytes: number): SharedFile {
  return (Deno.build.os === "linux" ? inMemory(bytes) : null) ?? onDisk(bytes);
}

function inMemory(bytes: number): SharedFile | null {
  const { symbols: { shm_open, posix_fallocate, close } } = Deno.dlopen(libraryName(), {
    shm_open: { parameters: ["buffer", "i32", "u32"], result: "i32" },
    posix_fallocate: { parameters: ["i32", "i64", "i64"], result: "i32" },
    close: { parameters: ["i32"], result: "i32" },
  });
  const path = text(`/wgpt-${crypto.randomUUID()}`);
  const descriptor = shm_open(path, O_RDWR | O_CREAT | O_EXCL, 0o600);
  if (descriptor < 0) return null;
  const refused = posix_fallocate(descriptor, 0n, BigInt(bytes)) !== 0;
  close(descriptor);
  const name = SHM + new TextDecoder().decode(path.subarray(0, -1));
  const file = { name, [Symbol.dispose]: () => removeSharedFile(name) };
  if (!refused) return file;
  file[Symbol.dispose]();
  return null;
}

function onDisk(bytes: number): SharedFile {
  const name = Deno.makeTempFileSync({ prefix: "wgpt-" });
  using file = Deno.openSync(name, { write: true });
  const zeros = new Uint8Array(1 << 20);
  for (let left = bytes; left > 0;) left -= file.writeSync(zeros.subarray(0, left));
  return { name, [Symbol.dispose]: () => removeSharedFile(name) };
}

/** Removes the name of a shared file, where it is still there. */
export function removeSharedFile(name: string): void {
  if (name.startsWith(SHM)) {
    const { symbols } = Deno.dlopen(libraryName(), { shm_unlink: { parameters: ["buffer"], result: "i32" } });
    symbols.shm_unlink(text(name.slice(SHM.length)));
    return;
  }
  try {
    Deno.removeSync(name);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

/** Maps a shared file. @throws UserError where processes can't share memory on this system, Error where it isn't there. */
export function openPosixRegion(name: string, bytes: number): SharedRegion {
  const { symbols } = Deno.dlopen(libraryName(), {
    open: { parameters: ["buffer", "i32"], result: "i32" },
    shm_open: { parameters: ["buffer", "i32", "u32"], result: "i32" },
    mmap: { parameters: ["pointer", "usize", "i32", "i32", "i32", "i64"], result: "pointer" },
    munmap: { parameters: ["pointer", "usize"], result: "i32" },
    close: { parameters: ["i32"], result: "i32" },
  });
  const descriptor = name.startsWith(SHM)
    ? symbols.shm_open(text(name.slice(SHM.length)), O_RDWR, 0)
    : symbols.open(text(name), O_RDWR);
  const size = BigInt(bytes);
  const pointer = descriptor < 0 ? null : symbols.mmap(null, size, PROT_READ_WRITE, MAP_SHARED, descriptor, 0n);
  if (descriptor >= 0) symbols.close(descriptor);
  if (pointer === null || Deno.UnsafePointer.value(pointer) === MAP_FAILED) {
    throw new Error(`Cannot map ${bytes} bytes of ${name}`);
  }
  return {
    buffer: Deno.UnsafePointerView.getArrayBuffer(pointer, bytes),
    ...Deno.build.os === "linux" ? futex(pointer) : polling(),
    [Symbol.dispose]: () => void symbols.munmap(pointer, size),
  };
}

/** Number of the system call futex. */
const FUTEX = Deno.build.arch === "x86_64" ? 202n : 98n;
/** Operations without FUTEX_PRIVATE_FLAG: between processes. */
const [FUTEX_WAIT, FUTEX_WAKE] = [0n, 1n];
const ALL = 0x7fff_ffffn;

/** Sleeping by futex(2). */
function futex(pointer: Deno.PointerObject): Pick<SharedRegion, "wait" | "wake"> {
  const { symbols: { syscall } } = Deno.dlopen(libraryName(), {
    syscall: { parameters: ["i64", "pointer", "i64", "i64", "buffer", "pointer", "i64"], result: "i64" },
  });
  const address = (word: number) => Deno.UnsafePointer.offset(pointer, word * 4);
  return {
    wait(word, value, milliseconds) {
      const time = new BigInt64Array([
        BigInt(Math.floor(milliseconds / 1000)),
        BigInt(milliseconds % 1000) * 1_000_000n,
      ]);
      syscall(FUTEX, address(word), FUTEX_WAIT, BigInt(value), new Uint8Array(time.buffer), null, 0n);
    },
    wake: (word) => void syscall(FUTEX, address(word), FUTEX_WAKE, ALL, null, null, 0n),
  };
}

/** Sleeping a moment at a time. */
function polling(): Pick<SharedRegion, "wait" | "wake"> {
  const never = new Int32Array(new SharedArrayBuffer(4));
  return { wait: () => void Atomics.wait(never, 0, 0, 1), wake: () => {} };
}

function libraryName(): string {
  const names: Partial<Record<typeof Deno.build.os, string>> = {
    linux: "libc.so.6",
    darwin: "libSystem.dylib",
    freebsd: "libc.so.7",
  };
  const name = names[Deno.build.os];
  if (name === undefined) {
    throw new UserError(`Choose --isolation worker: processes can't share memory on ${Deno.build.os} yet`, 2);
  }
  return name;
}

function text(value: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(`${value}\0`);
}
