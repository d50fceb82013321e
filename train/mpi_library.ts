/**
 * An MPI library by FFI: Open MPI, or one with MPICH's binary interface (Intel MPI, MVAPICH, Cray MPICH). It finds the
 * library, hides how its handles look, and turns its codes into errors; what is sent, and when, it doesn't know.
 */
import { UserError } from "../model/errors.ts";

/** A communicator, datatype or error handler: an address in Open MPI, an i32 in MPICH. */
export type Handle = Deno.PointerValue | number;

/** What a call that doesn't wait leaves behind, to be tested until it is done; and the arrays that must live as long. */
export interface Request {
  readonly name: string;
  readonly handle: BigUint64Array<ArrayBuffer>;
  readonly held: readonly unknown[];
}

/** Where the blocks of all ranks lie in an array: bytes and first byte of each. */
export interface Blocks {
  readonly data: Uint8Array;
  readonly counts: Int32Array<ArrayBuffer>;
  readonly starts: Int32Array<ArrayBuffer>;
}

/** Calls may come from the thread that initialized the library, and from no other. */
const THREAD_FUNNELED = 1;

/** At least what libraries ask for: MPI_MAX_LIBRARY_VERSION_STRING is 8192 in MPICH, MPI_MAX_ERROR_STRING 512. */
const TEXT_BYTES = 8192;

interface Family {
  readonly name: "Open MPI" | "MPICH";
  /** What the version of a library of this family says. */
  readonly says: RegExp;
  readonly handle: "pointer" | "i32";
  readonly inPlace: bigint;
  readonly statusIgnore: bigint;
  /** Handles: symbols whose addresses they are, or numbers. From each library's mpi.h. */
  readonly world: string | number;
  readonly byte: string | number;
  readonly errorsReturn: string | number;
  /** Set by the family's mpirun to the number of processes it started. */
  readonly sizeVariable: string;
  readonly files: { readonly linux: readonly string[]; readonly darwin: readonly string[] };
}

const OPEN_MPI: Family = {
  name: "Open MPI",
  says: /Open MPI|Spectrum MPI/,
  handle: "pointer",
  inPlace: 1n,
  statusIgnore: 0n,
  world: "ompi_mpi_comm_world",
  byte: "ompi_mpi_byte",
  errorsReturn: "ompi_mpi_errors_return",
  sizeVariable: "OMPI_COMM_WORLD_SIZE",
  files: {
    linux: ["libmpi.so.40", "libmpi.so"],
    darwin: ["libmpi.40.dylib", "/opt/homebrew/lib/libmpi.40.dylib", "/opt/local/lib/openmpi-mp/libmpi.40.dylib"],
  },
};

const MPICH: Family = {
  name: "MPICH",
  says: /MPICH|Intel\(R\) MPI|MVAPICH/,
  handle: "i32",
  inPlace: 0xffff_ffff_ffff_ffffn,
  statusIgnore: 1n,
  world: 0x44000000,
  byte: 0x4c00010d,
  errorsReturn: 0x54000001,
  sizeVariable: "PMI_SIZE",
  files: {
    linux: ["libmpich.so.12", "libmpi.so.12", "libmpich.so"],
    darwin: ["libmpi.12.dylib", "/opt/homebrew/lib/libmpi.12.dylib", "/opt/local/lib/mpich-mp/libmpi.12.dylib"],
  },
};

const FAMILIES: readonly Family[] = [OPEN_MPI, MPICH];

/** Processes that a family's mpirun started; undefined where it did not. */
function launched({ sizeVariable }: Family): number | undefined {
  const size = Deno.env.get(sizeVariable);
  return size === undefined ? undefined : Number(size);
}

function signatures(handle: "pointer" | "i32") {
  const started = { result: "i32" } as const;
  const blocks = ["buffer", "buffer", "buffer", handle] as const;
  const inPlace = ["pointer", "i32", handle] as const;
  return {
    MPI_Init_thread: { parameters: ["pointer", "pointer", "i32", "buffer"], ...started },
    MPI_Comm_set_errhandler: { parameters: [handle, handle], ...started },
    MPI_Comm_rank: { parameters: [handle, "buffer"], ...started },
    MPI_Comm_size: { parameters: [handle, "buffer"], ...started },
    MPI_Comm_dup: { parameters: [handle, "buffer"], ...started },
    MPI_Ialltoallv: { parameters: [...blocks, ...blocks, handle, "buffer"], ...started },
    MPI_Iallgatherv: { parameters: [...inPlace, ...blocks, handle, "buffer"], ...started },
    MPI_Ibcast: { parameters: ["buffer", "i32", handle, "i32", handle, "buffer"], ...started },
    MPI_Ibarrier: { parameters: [handle, "buffer"], ...started },
    MPI_Test: { parameters: ["buffer", "buffer", "pointer"], ...started },
    MPI_Error_string: { parameters: ["i32", "buffer", "buffer"], ...started },
    MPI_Abort: { parameters: [handle, "i32"], ...started },
    MPI_Finalize: { parameters: [], ...started },
  } as const satisfies Deno.ForeignLibraryInterface;
}

type Functions = Readonly<Record<keyof ReturnType<typeof signatures>, (...values: readonly unknown[]) => number>>;

export class MpiLibrary {
  readonly world: Handle;
  readonly rank: number;
  readonly size: number;
  readonly #byte: Handle;
  readonly #functions: Functions;
  readonly #inPlace: Deno.PointerValue;
  readonly #statusIgnore: Deno.PointerValue;
  readonly #flag = new Int32Array(1);

  /** Initializes MPI, which a process can do once, and waits for all ranks to do so. */
  constructor(file: string, readonly family: Family, address: (symbol: string) => Deno.PointerObject) {
    const handle = (value: string | number) => typeof value === "string" ? address(value) : value;
    this.#functions = Deno.dlopen(file, signatures(family.handle)).symbols as unknown as Functions;
    this.world = handle(family.world);
    this.#byte = handle(family.byte);
    this.#inPlace = Deno.UnsafePointer.create(family.inPlace);
    this.#statusIgnore = Deno.UnsafePointer.create(family.statusIgnore);
    const provided = this.#number((into) => this.#call("MPI_Init_thread", null, null, THREAD_FUNNELED, into));
    if (provided < THREAD_FUNNELED) {
      throw new UserError(`${file} was built without support of threads: install one that gives MPI_THREAD_FUNNELED`);
    }
    this.#call("MPI_Comm_set_errhandler", this.world, handle(family.errorsReturn));
    this.rank = this.#number((into) => this.#call("MPI_Comm_rank", this.world, into));
    this.size = this.#number((into) => this.#call("MPI_Comm_size", this.world, into));
  }

  #number(write: (into: Uint8Array) => void): number {
    const value = new Int32Array(1);
    write(bytesOf(value));
    return value[0];
  }

  #call(name: keyof Functions, ...values: readonly unknown[]): void {
    const code = this.#functions[name](...values);
    if (code !== 0) throw new Error(`${name} failed: ${this.#errorText(code)}`);
  }

  #errorText(code: number): string {
    const text = new Uint8Array(TEXT_BYTES);
    const length = this.#number((into) => void this.#functions.MPI_Error_string(code, text, into));
    return length === 0 ? `code ${code}` : new TextDecoder().decode(text.subarray(0, length));
  }

  #start(name: keyof Functions, values: readonly unknown[], held: readonly unknown[]): Request {
    const handle = new BigUint64Array(1);
    this.#call(name, ...values, bytesOf(handle));
    return { name, handle, held };
  }

  /** Another communicator of the same ranks: what is sent on one doesn't meet what is sent on the other. */
  duplicate(): Handle {
    const made = new BigUint64Array(1);
    this.#call("MPI_Comm_dup", this.world, bytesOf(made));
    return this.family.handle === "pointer" ? Deno.UnsafePointer.create(made[0]) : Number(BigInt.asIntN(32, made[0]));
  }

  /** Block i of `from` goes to rank i, whose block comes into block i of `into`. */
  exchange(communicator: Handle, from: Blocks, into: Blocks): Request {
    const values = [...this.#blocks(from), ...this.#blocks(into), communicator];
    return this.#start("MPI_Ialltoallv", values, [from, into]);
  }

  /** Block i comes from rank i. */
  gather(communicator: Handle, blocks: Blocks): Request {
    const values = [this.#inPlace, 0, this.#byte, ...this.#blocks(blocks), communicator];
    return this.#start("MPI_Iallgatherv", values, [blocks]);
  }

  #blocks({ data, counts, starts }: Blocks): readonly unknown[] {
    return [data, bytesOf(counts), bytesOf(starts), this.#byte];
  }

  broadcast(communicator: Handle, data: Uint8Array, root: number): Request {
    return this.#start("MPI_Ibcast", [data, data.length, this.#byte, root, communicator], [data]);
  }

  barrier(communicator: Handle): Request {
    return this.#start("MPI_Ibarrier", [communicator], []);
  }

  /** Whether it is done; lets the library go on with all that is under way. */
  test({ name, handle }: Request): boolean {
    const code = this.#functions.MPI_Test(bytesOf(handle), bytesOf(this.#flag), this.#statusIgnore);
    if (code !== 0) throw new Error(`${name} failed: ${this.#errorText(code)}`);
    return this.#flag[0] !== 0;
  }

  /** Ends all ranks. */
  abort(code: number): never {
    this.#call("MPI_Abort", this.world, code);
    throw new Error("MPI_Abort returned");
  }

  finalize(): void {
    this.#call("MPI_Finalize");
  }
}

function bytesOf(numbers: Int32Array<ArrayBuffer> | BigUint64Array<ArrayBuffer>): Uint8Array<ArrayBuffer> {
  return new Uint8Array(numbers.buffer, numbers.byteOffset, numbers.byteLength);
}

/** Opens the library that the environment's MPI_LIB names, or else the one that started this process, or any. */
export function openMpiLibrary(): MpiLibrary {
  const system = Deno.build.os;
  if (system !== "linux" && system !== "darwin") throw new UserError(`MPI works on Linux and macOS, not on ${system}`);
  const named = Deno.env.get("MPI_LIB");
  const started = (family: Family) => launched(family) === undefined ? 1 : 0;
  const files = named !== undefined
    ? [named]
    : FAMILIES.toSorted((a, b) => started(a) - started(b)).flatMap((family) => family.files[system]);
  const loader = openLoader(system);
  for (const file of files) {
    const loaded = loader.load(file);
    if (loaded === null) continue;
    const library = new MpiLibrary(file, familyOf(file), (symbol) => loader.address(loaded, symbol));
    refuseOtherLauncher(library, file);
    return library;
  }
  throw new UserError(
    named !== undefined
      ? `Cannot load the MPI library ${named} that MPI_LIB names: ${loader.error()}`
      : `Found no MPI library (tried ${
        files.join(", ")
      }): install Debian's openmpi-bin libopenmpi3, or mpich libmpich12, ` +
        "or set MPI_LIB to the path of one",
  );
}

function familyOf(file: string): Family {
  const { symbols } = Deno.dlopen(file, {
    MPI_Get_library_version: { parameters: ["buffer", "buffer"], result: "i32" },
  });
  const text = new Uint8Array(TEXT_BYTES);
  const length = new Int32Array(1);
  symbols.MPI_Get_library_version(text, bytesOf(length));
  const version = new TextDecoder().decode(text.subarray(0, length[0]));
  const family = FAMILIES.find(({ says }) => says.test(version));
  if (family !== undefined) return family;
  throw new UserError(`${file} is neither Open MPI nor MPICH's kin: "${version.split("\n")[0]}"; set MPI_LIB to one`);
}

/** A library started by another one's mpirun finds itself alone: every process would train by itself. */
function refuseOtherLauncher({ size, family }: MpiLibrary, file: string): void {
  for (const other of FAMILIES) {
    const processes = launched(other) ?? 1;
    if (other === family || size > 1 || processes === 1) continue;
    throw new UserError(
      `${other.name}'s mpirun started ${processes} processes, but ${file} is ${family.name}, which sees one: ` +
        `use ${family.name}'s mpirun, or set MPI_LIB to ${other.name}'s library`,
    );
  }
}

/** The system's loader: Deno's own shows a symbol's value, but not its address, and hides it from Open MPI's plugins. */
function openLoader(system: "linux" | "darwin") {
  const { symbols } = Deno.dlopen(system === "linux" ? "libc.so.6" : "libSystem.B.dylib", {
    dlopen: { parameters: ["buffer", "i32"], result: "pointer" },
    dlsym: { parameters: ["pointer", "buffer"], result: "pointer" },
    dlerror: { parameters: [], result: "pointer" },
  });
  const text = (value: string) => new TextEncoder().encode(`${value}\0`);
  const RTLD_NOW = 2;
  const RTLD_GLOBAL = system === "linux" ? 0x100 : 0x8;
  return {
    load: (file: string) => symbols.dlopen(text(file), RTLD_NOW | RTLD_GLOBAL),
    address(library: Deno.PointerObject, symbol: string): Deno.PointerObject {
      const found = symbols.dlsym(library, text(symbol));
      if (found === null) throw new Error(`Cannot find ${symbol} in the MPI library`);
      return found;
    },
    error(): string {
      const message = symbols.dlerror();
      return message === null ? "unknown error" : Deno.UnsafePointerView.getCString(message);
    },
  };
}
