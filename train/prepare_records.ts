/**
 * Cuts a range of a file into records: lines, or texts between separators. A record belongs to the range that it starts in,
 * so ranges can be read apart and together give each record once. It doesn't know what a record holds.
 */
import type { ByteSource } from "./prepare_bytes.ts";

export interface Separator {
  /** The first separator in `data` at or after `from`; one that could go on past the end of `data` ends there. */
  find(data: Uint8Array, from: number): readonly [start: number, end: number] | undefined;
  /** Bytes before a record that show that it starts there. */
  readonly reach: number;
}

export interface Record {
  /** Where it starts in the file. */
  readonly offset: number;
  readonly bytes: Uint8Array;
}

const LF = 10;
const CR = 13;
const MORE_BYTES = 1 << 20;
/** Half of the longest string there is. */
export const LONGEST_RECORD = 2 ** 28;

export const lines: Separator = {
  reach: 1,
  find(data, from) {
    const at = data.indexOf(LF, from);
    return at < 0 ? undefined : [at, at + 1];
  },
};

/** One or more empty lines. */
export const blankLines: Separator = {
  reach: 4,
  find(data, from) {
    for (let at = data.indexOf(LF, from); at >= 0; at = data.indexOf(LF, at + 1)) {
      let end = at + 1;
      while (data[end] === LF || data[end] === CR) end++;
      if (data.subarray(at + 1, end).includes(LF)) return [at, end];
      at = end - 1;
    }
    return undefined;
  },
};

/** A text that can't overlap itself, as `<|endoftext|>`. */
export function literal(text: string): Separator {
  const wanted = new TextEncoder().encode(text);
  return {
    reach: wanted.length,
    find(data, from) {
      for (let at = data.indexOf(wanted[0], from); at >= 0; at = data.indexOf(wanted[0], at + 1)) {
        if (wanted.every((byte, index) => data[at + index] === byte)) return [at, at + wanted.length];
      }
      return undefined;
    },
  };
}

/** The records that start in bytes `from` up to `to`, each without its separator. */
export async function* records(
  source: ByteSource,
  from: number,
  to: number,
  separator: Separator,
): AsyncGenerator<Record> {
  const size = source.version.bytes;
  const base = Math.max(0, from - separator.reach);
  let data = new Uint8Array(await source.slice(base, Math.min(size, to + separator.reach)));
  const next = async (at: number) => {
    for (;;) {
      const found = separator.find(data, at);
      const atEnd = base + data.length === size;
      if (atEnd || (found && found[1] < data.length)) return found;
      if (data.length - at > LONGEST_RECORD) return undefined;
      const end = base + data.length;
      data = joined(data, await source.slice(end, Math.min(size, end + Math.max(MORE_BYTES, data.length))));
    }
  };
  let start = 0;
  while (base + start < from) {
    const found = await next(start);
    if (!found) return;
    start = found[1];
  }
  while (base + start < Math.min(to, size)) {
    const found = await next(start);
    yield { offset: base + start, bytes: data.subarray(start, found?.[0]) };
    if (!found) return;
    start = found[1];
  }
}

function joined(a: Uint8Array, b: ArrayBuffer): Uint8Array<ArrayBuffer> {
  const both = new Uint8Array(a.length + b.byteLength);
  both.set(a);
  both.set(new Uint8Array(b), a.length);
  return both;
}
