/**
 * safetensors files (https://github.com/huggingface/safetensors#format): a strict reader that takes single tensors or rows of
 * them, and a streaming writer. It knows nothing of models.
 */

import { UserError } from "./errors.ts";
import { explainIo, writeAll, writeAtomically } from "./files.ts";
import { toF32 } from "./float_formats.ts";
import {
  DTYPE_BITS,
  formatHeader,
  type Header,
  isDType,
  MAX_HEADER_BYTES,
  parseHeader,
  quote,
  type SafetensorsDType,
  tensorBytes,
  type TensorEntry,
} from "./safetensors_header.ts";

export { type FloatFormat, fromF32, toF32 } from "./float_formats.ts";
export type { SafetensorsDType } from "./safetensors_header.ts";

/** A tensor in memory: little-endian, row-major bytes. */
export interface RawTensor {
  dtype: SafetensorsDType;
  shape: number[];
  data: Uint8Array;
}

/** A tensor to write. Its data may be made when their turn comes, whole or in pieces, so that no more than one is in memory. */
export interface TensorSource {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly data: ArrayBufferView | (() => ArrayBufferView | Promise<ArrayBufferView> | AsyncIterable<ArrayBufferView>);
}

/**
 * Reads all tensors of a file, in the order of their data.
 *
 * @throws UserError naming the file and the fault where it is not a well-formed safetensors file.
 * @example
 * ```ts
 * const path = await Deno.makeTempFile({ suffix: ".safetensors" });
 * await writeSafetensors(path, { scale: { dtype: "F32", shape: [2], data: new Float32Array([0.5, 2]) } });
 * const tensors = await readSafetensors(path);
 * console.assert(toF32(tensors.get("scale")!)[1] === 2);
 * await Deno.remove(path);
 * ```
 */
export async function readSafetensors(path: string): Promise<Map<string, RawTensor>> {
  using file = await openSafetensors(path);
  const tensors = new Map<string, RawTensor>();
  for (const [name, { dtype, shape }] of file.tensors) {
    tensors.set(name, { dtype, shape: [...shape], data: await file.read(name) });
  }
  return tensors;
}

/**
 * Opens a file and checks its whole header; tensors are read when asked for.
 *
 * @throws UserError naming the file and the fault where it is not a well-formed safetensors file.
 */
export async function openSafetensors(path: string): Promise<SafetensorsFile> {
  const fail = (fault: string): never => {
    throw new UserError(`Cannot read ${path}: ${fault}`);
  };
  let file: Deno.FsFile | undefined;
  try {
    const { size, isFile } = await Deno.stat(path);
    if (!isFile) fail("it is no file");
    file = await Deno.open(path, { read: true });
    const { header, dataStart } = await readHeader(file, size, fail);
    return new SafetensorsFile(path, file, header, dataStart);
  } catch (error) {
    file?.close();
    throw explainIo("read", path, error);
  }
}

/** An open safetensors file. Reads may overlap in time; they take turns. */
export class SafetensorsFile implements Disposable {
  readonly metadata: Readonly<Record<string, string>>;
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  readonly #file: Deno.FsFile;
  readonly #dataStart: number;
  #turn: Promise<unknown> = Promise.resolve();

  constructor(readonly path: string, file: Deno.FsFile, header: Header, dataStart: number) {
    this.metadata = header.metadata;
    this.tensors = header.tensors;
    this.#file = file;
    this.#dataStart = dataStart;
  }

  /** A tensor's bytes, or those of rows [from, to) of its first dimension. Throws RangeError for an unknown name or row. */
  read(name: string, rows?: readonly [from: number, to: number]): Promise<Uint8Array> {
    const [begin, end] = this.#range(name, rows);
    const bytes = this.#turn.then(() => this.#readRange(begin, end));
    this.#turn = bytes.catch(() => {});
    return bytes;
  }

  /** The same as f32; the dtype must be F32, F16, BF16 or F64. */
  async readF32(name: string, rows?: readonly [from: number, to: number]): Promise<Float32Array> {
    return toF32({ dtype: this.#entry(name).dtype, data: await this.read(name, rows) });
  }

  [Symbol.dispose](): void {
    this.#file.close();
  }

  #entry(name: string): TensorEntry {
    const entry = this.tensors.get(name);
    if (entry === undefined) throw new RangeError(`Cannot read tensor ${quote(name)} of ${this.path}: it holds none`);
    return entry;
  }

  #range(name: string, rows?: readonly [number, number]): [number, number] {
    const { dtype, shape, begin, end } = this.#entry(name);
    if (rows === undefined) return [begin, end];
    const [from, to] = rows;
    const size = shape[0] ?? 0;
    if (!Number.isInteger(from) || !Number.isInteger(to) || from < 0 || from > to || to > size) {
      throw new RangeError(`Cannot read rows ${from} to ${to} of tensor ${quote(name)}: it has ${size}`);
    }
    const rowBits = DTYPE_BITS[dtype] * shape.slice(1).reduce((product, length) => product * length, 1);
    if ((from * rowBits) % 8 !== 0 || (to * rowBits) % 8 !== 0) {
      throw new RangeError(`Cannot read rows ${from} to ${to} of tensor ${quote(name)}: they don't end on whole bytes`);
    }
    return [begin + from * rowBits / 8, begin + to * rowBits / 8];
  }

  async #readRange(begin: number, end: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(end - begin);
    try {
      await this.#file.seek(this.#dataStart + begin, Deno.SeekMode.Start);
      const read = await readFully(this.#file, bytes);
      if (read === bytes.length) return bytes;
    } catch (error) {
      throw explainIo("read", this.path, error);
    }
    throw new UserError(`Cannot read ${this.path}: the file became shorter while it was read`);
  }
}

/**
 * Writes a file atomically (beside, synced, renamed). The same tensors and metadata give the same bytes, in whatever order they
 * come: data stand by decreasing element size, so that all are aligned, then by name.
 *
 * @throws RangeError for a name, dtype or data that don't fit, UserError where the file can't be written.
 * @example
 * ```ts
 * const path = await Deno.makeTempFile({ suffix: ".safetensors" });
 * const halves = fromF32(new Float32Array([1, 2, 3, 4, 5, 6]), "F16");
 * await writeSafetensors(path, { table: { dtype: "F16", shape: [3, 2], data: halves } }, { format: "pt" });
 * {
 *   using file = await openSafetensors(path);
 *   const row = await file.readF32("table", [1, 2]);
 *   console.assert(row[0] === 3 && row[1] === 4);
 * }
 * await Deno.remove(path);
 * ```
 */
export async function writeSafetensors(
  path: string,
  tensors: Iterable<readonly [string, TensorSource]> | Readonly<Record<string, TensorSource>>,
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
  const placed = place(
    Symbol.iterator in tensors ? tensors as Iterable<[string, TensorSource]> : Object.entries(tensors),
  );
  const header = formatHeader(placed.map(({ name, entry }) => [name, entry]), metadata);
  if (header.length > MAX_HEADER_BYTES) {
    throw new RangeError(
      `Cannot write ${path}: its header takes ${header.length} bytes, at most ${MAX_HEADER_BYTES} fit`,
    );
  }
  const length = new Uint8Array(8);
  new DataView(length.buffer).setBigUint64(0, BigInt(header.length), true);
  await writeAtomically(path, async (file) => {
    await writeAll(file, length);
    await writeAll(file, header);
    for (const tensor of placed) await writeTensor(file, tensor);
  });
}

interface Placed {
  readonly name: string;
  readonly entry: TensorEntry;
  readonly data: TensorSource["data"];
}

function place(tensors: Iterable<readonly [string, TensorSource]>): Placed[] {
  const seen = new Set<string>();
  const sized = [...tensors].map(([name, { dtype, shape, data }]) => {
    if (name === "__metadata__" || seen.has(name) || !name.isWellFormed()) {
      throw new RangeError(`Cannot write tensor ${quote(name)}: the name is reserved, used twice or no text`);
    }
    seen.add(name);
    if (!isDType(dtype)) throw new RangeError(`Cannot write tensor ${quote(name)}: unknown dtype ${quote(dtype)}`);
    const bytes = shape.every((size) => Number.isSafeInteger(size) && size >= 0)
      ? tensorBytes(dtype, shape)
      : undefined;
    if (bytes === undefined) {
      throw new RangeError(`Cannot write tensor ${quote(name)}: its shape is (${shape.join(", ")})`);
    }
    return { name, dtype, shape, bytes, data };
  });
  sized.sort((a, b) => DTYPE_BITS[b.dtype] - DTYPE_BITS[a.dtype] || (a.name < b.name ? -1 : 1));
  let begin = 0;
  return sized.map(({ name, dtype, shape, bytes, data }) => {
    const entry = { dtype, shape, begin, end: begin += bytes };
    return { name, entry, data };
  });
}

async function writeTensor(file: Deno.FsFile, { name, entry, data }: Placed): Promise<void> {
  const wanted = entry.end - entry.begin;
  let written = 0;
  for await (const piece of pieces(data)) {
    written += piece.byteLength;
    if (written > wanted) break;
    await writeAll(file, new Uint8Array(piece.buffer, piece.byteOffset, piece.byteLength));
  }
  if (written !== wanted) {
    const more = written > wanted ? " or more" : "";
    throw new RangeError(`Cannot write tensor ${quote(name)}: its data take ${written}${more} bytes, wanted ${wanted}`);
  }
}

async function* pieces(data: TensorSource["data"]): AsyncIterable<ArrayBufferView> {
  const made = typeof data === "function" ? await data() : data;
  if (Symbol.asyncIterator in made) yield* made;
  else yield made;
}

/** The header and where the data start. Nothing is allocated for a length that the file doesn't have. */
async function readHeader(
  file: Deno.FsFile,
  size: number,
  fail: (fault: string) => never,
): Promise<{ header: Header; dataStart: number }> {
  if (size < 8) fail(`it holds ${size} bytes, the length of the header alone takes 8`);
  const prefix = new Uint8Array(8);
  if (await readFully(file, prefix) !== 8) fail("the file became shorter while it was read");
  const length = new DataView(prefix.buffer).getBigUint64(0, true);
  if (length === 0n) fail("its header is 0 bytes long");
  if (length > BigInt(MAX_HEADER_BYTES)) {
    fail(`its header claims ${length} bytes, at most ${MAX_HEADER_BYTES} are allowed`);
  }
  if (length > BigInt(size - 8)) fail(`its header claims ${length} bytes, ${size - 8} follow: the file is truncated`);
  const bytes = new Uint8Array(Number(length));
  if (await readFully(file, bytes) !== bytes.length) fail("the file became shorter while it was read");
  const dataStart = 8 + bytes.length;
  return { header: parseHeader(bytes, size - dataStart, fail), dataStart };
}

/** Fills `bytes` from the file's place; returns how many there were. */
async function readFully(file: Deno.FsFile, bytes: Uint8Array): Promise<number> {
  let filled = 0;
  while (filled < bytes.length) {
    const read = await file.read(bytes.subarray(filled));
    if (read === null) break;
    filled += read;
  }
  return filled;
}
