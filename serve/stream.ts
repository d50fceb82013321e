/** Turns generated token ids into text as it becomes certain: whole characters, no part of a stop string. Knows no HTTP and no engine. */
import type { Tokenizer } from "../model/tokenizer.ts";

/** A token whose text has been released. */
export interface Piece {
  readonly id: number;
  /** Where its first byte falls, in Unicode code points from the start of the stream. */
  readonly offset: number;
}

/** What one step let out. */
export interface Released {
  readonly text: string;
  /** Tokens that begin in the released text, in order; each is released once. */
  readonly pieces: readonly Piece[];
  /** A stop string has been completed; it and all that follows stay in. */
  readonly stopped: boolean;
}

export interface TextStream {
  /** Adds a token of the prompt: its text is not searched for stop strings. */
  echo(id: number): Released;
  /** Adds a generated token. */
  push(id: number): Released;
  /** Lets out what was held back: the beginning of a stop string, the bytes of an unfinished character (as U+FFFD). */
  end(): Released;
}

const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
const strictUtf8 = new TextDecoder("utf-8", { ignoreBOM: true, fatal: true });
const noBytes = new Uint8Array();

/** The bytes of a token; none for an id that the model has and the tokenizer hasn't. */
export function bytesOf(tokenizer: Pick<Tokenizer, "bytes">, id: number): Uint8Array {
  try {
    return tokenizer.bytes(id);
  } catch (error) {
    if (error instanceof RangeError) return noBytes;
    throw error;
  }
}

/** A token as the API shows it alone: its text, or `bytes:\xe2\x82` where it is no whole characters. */
export function tokenText(tokenizer: Pick<Tokenizer, "bytes">, id: number): string {
  const bytes = bytesOf(tokenizer, id);
  try {
    return strictUtf8.decode(bytes);
  } catch {
    return "bytes:" + Array.from(bytes, (byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("");
  }
}

const isContinuation = (byte: number) => (byte & 0xc0) === 0x80;

/** How many bytes at the end may yet become a character with the bytes to come. */
function unfinished(bytes: Uint8Array): number {
  for (let back = 1; back <= Math.min(3, bytes.length); back++) {
    const byte = bytes[bytes.length - back];
    if (isContinuation(byte)) continue;
    const length = byte > 0xf4 ? 1 : byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc2 ? 2 : 1;
    return length > back ? back : 0;
  }
  return 0;
}

interface CharacterStream {
  push(bytes: Uint8Array): { readonly text: string; readonly before: string };
  end(): string;
}

/** Bytes in, whole characters out. `before` is the part of the text that stands before the pushed bytes. */
function createCharacterStream(): CharacterStream {
  let pending: Uint8Array = noBytes;
  const end = () => {
    const text = utf8.decode(pending);
    pending = noBytes;
    return text;
  };
  return {
    push(bytes) {
      const before = bytes.length > 0 && !isContinuation(bytes[0]) ? end() : "";
      const all = new Uint8Array(pending.length + bytes.length);
      all.set(pending);
      all.set(bytes, pending.length);
      const whole = all.length - unfinished(all);
      pending = all.subarray(whole);
      return { text: before + utf8.decode(all.subarray(0, whole)), before };
    },
    end,
  };
}

export interface StopWatch {
  /** Adds text; returns what can no longer be part of a stop string. */
  push(text: string): { readonly text: string; readonly stopped: boolean };
  end(): string;
}

/**
 * Watches a text for stop strings. The string that is completed first ends the text, at its beginning; of two completed by the same
 * character, the longer. The result doesn't depend on how the text is cut into pieces.
 */
export function createStopWatch(stops: readonly string[]): StopWatch {
  let held = "";
  const release = (length: number) => {
    const text = held.slice(0, length);
    held = held.slice(length);
    return text;
  };
  return {
    push(text) {
      held += text;
      const match = firstCompleted(held, stops);
      if (match !== undefined) return { text: release(match), stopped: true };
      return { text: release(held.length - possibleBeginning(held, stops)), stopped: false };
    },
    end: () => release(held.length),
  };
}

/** Where the stop string that is completed first begins. */
function firstCompleted(text: string, stops: readonly string[]): number | undefined {
  let first: { begin: number; end: number } | undefined;
  for (const stop of stops) {
    const begin = text.indexOf(stop);
    if (begin < 0) continue;
    const end = begin + stop.length;
    if (!first || end < first.end || (end === first.end && begin < first.begin)) first = { begin, end };
  }
  return first?.begin;
}

/** The length of the longest end of the text that some stop string begins with. */
function possibleBeginning(text: string, stops: readonly string[]): number {
  let longest = 0;
  for (const stop of stops) {
    for (let length = Math.min(stop.length - 1, text.length); length > longest; length--) {
      if (text.endsWith(stop.slice(0, length))) longest = length;
    }
  }
  return longest;
}

/** The code points of a well-formed text. */
function codePoints(text: string): number {
  let count = 0;
  for (const _ of text) count++;
  return count;
}

/** Makes the stream of one choice. Stop strings must not be empty. */
export function createTextStream(tokenizer: Pick<Tokenizer, "bytes">, stops: readonly string[] = []): TextStream {
  const characters = createCharacterStream();
  const watch = createStopWatch(stops);
  const waiting: { id: number; offset: number; at: number }[] = [];
  let decoded = 0; // UTF-16 units
  let decodedPoints = 0;
  let released = 0; // UTF-16 units

  function decode(id: number): string {
    const { text, before } = characters.push(bytesOf(tokenizer, id));
    waiting.push({ id, offset: decodedPoints + codePoints(before), at: decoded + before.length });
    decoded += text.length;
    decodedPoints += codePoints(text);
    return text;
  }
  function letOut(text: string, stopped = false, all = false): Released {
    released += text.length;
    const pieces: Piece[] = [];
    while (waiting.length > 0 && (all || waiting[0].at < released)) {
      const { id, offset } = waiting.shift()!;
      pieces.push({ id, offset });
    }
    return { text, pieces, stopped };
  }
  return {
    echo: (id) => letOut(decode(id)),
    push(id) {
      const { text, stopped } = watch.push(decode(id));
      return letOut(text, stopped);
    },
    end() {
      const last = watch.push(characters.end());
      return last.stopped ? letOut(last.text, true) : letOut(last.text + watch.end(), false, true);
    },
  };
}
