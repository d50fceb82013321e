/**
 * The header of a safetensors file (https://github.com/huggingface/safetensors#format), parsed strictly and formatted. It knows
 * no files: it works on the header's bytes and the length of the data behind them.
 *
 * The grammar is read directly, not with JSON.parse, which accepts duplicate keys and builds whatever nesting it meets.
 */

/** Bits of an element, by dtype, in increasing alignment. */
export const DTYPE_BITS = {
  BOOL: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  C64: 64,
  F64: 64,
  I64: 64,
  U64: 64,
} as const;
export type SafetensorsDType = keyof typeof DTYPE_BITS;

/** Longest header the format allows, in bytes. */
export const MAX_HEADER_BYTES = 100_000_000;

/** A tensor's type and its place in the data, in bytes. */
export interface TensorEntry {
  readonly dtype: SafetensorsDType;
  readonly shape: readonly number[];
  readonly begin: number;
  readonly end: number;
}

export interface Header {
  readonly metadata: Readonly<Record<string, string>>;
  /** In the order of the data. */
  readonly tensors: ReadonlyMap<string, TensorEntry>;
}

/** Reports a fault; the caller knows the file's name. */
export type Fail = (fault: string) => never;

/** Parses and checks a header against the length of the data that follows it. */
export function parseHeader(bytes: Uint8Array, dataBytes: number, fail: Fail): Header {
  const { metadata, tensors } = new HeaderReader(decodeUtf8(bytes, fail), fail).header();
  for (const [name, entry] of tensors) checkEntry(name, entry, dataBytes, fail);
  const placed = [...tensors].sort(([, a], [, b]) => a.begin - b.begin || a.end - b.end);
  checkLayout(placed, dataBytes, fail);
  return { metadata, tensors: new Map(placed) };
}

/** The header's bytes, padded with spaces to a multiple of 8. `entries` stand in the order of their data. */
export function formatHeader(
  entries: Iterable<readonly [string, TensorEntry]>,
  metadata: Readonly<Record<string, string>>,
): Uint8Array {
  const fields = [...entries].map(([name, { dtype, shape, begin, end }]) =>
    `${JSON.stringify(name)}:${JSON.stringify({ dtype, shape, data_offsets: [begin, end] })}`
  );
  if (Object.keys(metadata).length > 0) fields.unshift(`"__metadata__":${JSON.stringify(metadata)}`);
  const bytes = new TextEncoder().encode(`{${fields.join(",")}}`);
  const padded = new Uint8Array(Math.ceil(bytes.length / 8) * 8).fill(0x20);
  padded.set(bytes);
  return padded;
}

/** Whether the format knows a dtype of this name. */
export function isDType(name: string): name is SafetensorsDType {
  return Object.hasOwn(DTYPE_BITS, name);
}

/** Bytes of a tensor, or undefined where they can't be counted exactly or don't fill whole bytes. */
export function tensorBytes(dtype: SafetensorsDType, shape: readonly number[]): number | undefined {
  let bits: number = DTYPE_BITS[dtype];
  for (const size of shape) {
    bits *= size;
    if (!Number.isSafeInteger(bits)) return undefined;
  }
  return bits % 8 === 0 ? bits / 8 : undefined;
}

/** A name as it stands in messages: quoted, on one line, of bounded length. */
export function quote(name: string): string {
  return JSON.stringify(name.length > 100 ? `${name.slice(0, 100)}…` : name);
}

function decodeUtf8(bytes: Uint8Array, fail: Fail): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return fail("the header is not UTF-8");
  }
}

function checkEntry(name: string, { dtype, shape, begin, end }: TensorEntry, dataBytes: number, fail: Fail): void {
  const tensor = `tensor ${quote(name)}`;
  if (begin > end) fail(`${tensor}: data offsets [${begin}, ${end}] are reversed`);
  if (end > dataBytes) {
    fail(`${tensor}: its data end at byte ${end}, but ${dataBytes} bytes of data are there: the file is truncated`);
  }
  const type = `${dtype} (${quoteShape(shape)})`;
  const bytes = tensorBytes(dtype, shape);
  if (bytes === undefined) return fail(`${tensor}: the size of ${type} overflows or is no whole number of bytes`);
  if (bytes !== end - begin) fail(`${tensor}: ${type} takes ${bytes} bytes, its data offsets give ${end - begin}`);
}

function quoteShape(shape: readonly number[]): string {
  return shape.length > 16 ? `${shape.slice(0, 16).join(", ")}, …` : shape.join(", ");
}

function checkLayout(placed: readonly (readonly [string, TensorEntry])[], dataBytes: number, fail: Fail): void {
  let place = 0;
  let before = "";
  for (const [name, { begin, end }] of placed) {
    if (begin > place) {
      fail(`bytes ${place} to ${begin} of the data belong to no tensor (before tensor ${quote(name)})`);
    }
    if (begin < place) fail(`tensors ${quote(before)} and ${quote(name)} overlap at byte ${begin} of the data`);
    place = end;
    before = name;
  }
  if (place < dataBytes) fail(`${dataBytes - place} bytes after the last tensor belong to no tensor`);
}

/** Reads the header's grammar: an object of tensor records and at most one object of strings, `__metadata__`. */
class HeaderReader {
  #place = 0;

  constructor(readonly text: string, readonly fail: Fail) {}

  header(): { metadata: Record<string, string>; tensors: Map<string, TensorEntry> } {
    if (this.text[0] !== "{") this.fail("the header is no JSON object: it must begin with {");
    const tensors = new Map<string, TensorEntry>();
    let metadata: Record<string, string> = {};
    this.#object((name) => {
      if (name === "__metadata__") metadata = this.#metadata();
      else tensors.set(name, this.#tensor(name));
    });
    this.#skipSpace();
    if (this.#place < this.text.length) this.#unexpected("the end of the header");
    return { metadata, tensors };
  }

  #metadata(): Record<string, string> {
    const entries: [string, string][] = [];
    this.#object((key) => entries.push([key, this.#string()]));
    return Object.fromEntries(entries);
  }

  #tensor(name: string): TensorEntry {
    let dtype: string | undefined;
    let shape: number[] | undefined;
    let offsets: number[] | undefined;
    this.#object((field) => {
      if (field === "dtype") dtype = this.#string();
      else if (field === "shape") shape = this.#integers(`tensor ${quote(name)}: shape`);
      else if (field === "data_offsets") offsets = this.#integers(`tensor ${quote(name)}: data_offsets`);
      else this.fail(`tensor ${quote(name)}: unknown field ${quote(field)}`);
    });
    if (dtype === undefined) this.fail(`tensor ${quote(name)}: dtype is missing`);
    if (!isDType(dtype)) this.fail(`tensor ${quote(name)}: unknown dtype ${quote(dtype)}`);
    if (shape === undefined) this.fail(`tensor ${quote(name)}: shape is missing`);
    if (offsets === undefined) this.fail(`tensor ${quote(name)}: data_offsets are missing`);
    if (offsets.length !== 2) this.fail(`tensor ${quote(name)}: data_offsets hold ${offsets.length} numbers, wanted 2`);
    return { dtype, shape, begin: offsets[0], end: offsets[1] };
  }

  /** An object; `field` reads the value of each key. */
  #object(field: (key: string) => void): void {
    this.#take("{");
    const seen = new Set<string>();
    if (this.#takeIf("}")) return;
    do {
      const key = this.#string();
      if (seen.has(key)) this.fail(`the key ${quote(key)} stands twice in one object`);
      seen.add(key);
      this.#take(":");
      field(key);
    } while (this.#takeIf(","));
    this.#take("}");
  }

  #integers(what: string): number[] {
    const values: number[] = [];
    this.#take("[");
    if (this.#takeIf("]")) return values;
    do values.push(this.#integer(what)); while (this.#takeIf(","));
    this.#take("]");
    return values;
  }

  #integer(what: string): number {
    this.#skipSpace();
    const start = this.#place;
    while (this.#place < this.text.length && !'[]{},:" \t\r\n'.includes(this.text[this.#place])) this.#place++;
    const word = this.text.slice(start, Math.min(this.#place, start + 40));
    if (word === "") this.#unexpected("an integer");
    if (!/^(0|[1-9]\d*)$/.test(word)) this.fail(`${what} hold ${quote(word)}, wanted integers from 0`);
    const value = Number(word);
    return Number.isSafeInteger(value) ? value : this.fail(`${what} hold ${word}, which is too large for any file`);
  }

  #string(): string {
    this.#skipSpace();
    const start = this.#place;
    if (this.text[start] !== '"') this.#unexpected("a string");
    let end = start + 1;
    while (end < this.text.length && this.text[end] !== '"') end += this.text[end] === "\\" ? 2 : 1;
    this.#place = end + 1;
    const value = this.#parseString(this.text.slice(start, end + 1));
    if (value === undefined) this.fail(`the header is no valid JSON: malformed string at character ${start}`);
    return value;
  }

  /** Undefined for a malformed string, and for one with half of a surrogate pair, which has no UTF-8 form. */
  #parseString(literal: string): string | undefined {
    try {
      const value = JSON.parse(literal) as string;
      return value.isWellFormed() ? value : undefined;
    } catch {
      return undefined;
    }
  }

  #take(character: string): void {
    if (!this.#takeIf(character)) this.#unexpected(character);
  }

  #takeIf(character: string): boolean {
    this.#skipSpace();
    if (this.text[this.#place] !== character) return false;
    this.#place++;
    return true;
  }

  #skipSpace(): void {
    while (this.#place < this.text.length && " \t\r\n".includes(this.text[this.#place])) this.#place++;
  }

  #unexpected(wanted: string): never {
    const found = this.#place < this.text.length ? quote(this.text[this.#place]) : "the end of the header";
    return this.fail(
      `the header is no valid JSON: found ${found} at character ${this.#place}, wanted ${wanted}`,
    );
  }
}
