/**
 * Work for one Worker at a time: a range of a source, and the documents in it. The same sources give the same pieces, and
 * pieces in order give the documents in order. It knows no tokens.
 */
import { Buffer } from "node:buffer";
import { UserError } from "../model/errors.ts";
import { type ByteSource, openBytes } from "./prepare_bytes.ts";
import { openParquet, type ParquetFile, readRows, type Watch } from "./prepare_parquet.ts";
import { blankLines, lines, literal, LONGEST_RECORD, type Record, records } from "./prepare_records.ts";
import type { Source } from "./prepare_sources.ts";

export interface Piece {
  /** Index of its source. */
  readonly source: number;
  /** Bytes of text and JSON lines; rows of a Parquet file, numbered from its first. */
  readonly from: number;
  readonly to: number;
  readonly rowGroup?: number;
  /** About how many bytes of text. */
  readonly bytes: number;
}

export interface ReadOptions {
  readonly column: string;
  /** "file": a text file is one document; "blank-line"; or the text that separates documents. */
  readonly splitOn: string;
}

/** A document, or why there is none. */
export type Found = { readonly text: string; readonly bytes: number } | { readonly bad: string };

/** A source open for reading; of a Parquet file the footer is read. */
export interface OpenSource {
  readonly source: Source;
  readonly bytes: ByteSource;
  readonly parquet?: ParquetFile;
}

const utf8 = newUtf8();
const GROUP_BYTES = 32 << 20;
/** Ranges of one row group may each fetch all of it, so far away they are larger. */
const FAR_GROUP_BYTES = 256 << 20;

/** @throws BadData where a Parquet file can't be used. */
export async function openSource(source: Source, options: ReadOptions, watch?: Watch): Promise<OpenSource> {
  const bytes = await openBytes(source.location, { bytes: source.bytes, tag: source.tag });
  try {
    if (source.format !== "parquet") return { source, bytes };
    return { source, bytes, parquet: await openParquet(bytes, options.column, watch) };
  } catch (error) {
    bytes[Symbol.dispose]();
    throw error;
  }
}

/** How a piece is called in messages. */
export function placeOf({ path }: Source, { rowGroup }: Piece): string {
  return rowGroup === undefined ? path : `${path}, row group ${rowGroup}`;
}

/** What is told where a piece is bad and bad ones aren't skipped. */
export function refusal(source: Source, piece: Piece, reason: string): UserError {
  const next = "repair or remove it, or go on without it with --skip-bad";
  return new UserError(`Cannot prepare ${placeOf(source, piece)}: ${reason}; ${next}`);
}

/** The pieces of one source: a file, ranges of `pieceBytes`, or row groups, large ones in parts. */
export function piecesOf(
  { source, parquet }: Pick<OpenSource, "source" | "parquet">,
  index: number,
  { splitOn, pieceBytes }: ReadOptions & { readonly pieceBytes: number },
): Piece[] {
  const pieces: Piece[] = [];
  if (!parquet) {
    const step = source.format === "text" && splitOn === "file" ? Math.max(1, source.bytes) : pieceBytes;
    for (let from = 0; from < source.bytes; from += step) {
      const to = Math.min(source.bytes, from + step);
      pieces.push({ source: index, from, to, bytes: to - from });
    }
    return pieces;
  }
  const most = source.location.kind === "file" ? GROUP_BYTES : FAR_GROUP_BYTES;
  parquet.groups.forEach(({ rows, firstRow, bytes }, rowGroup) => {
    const step = Math.ceil(rows / Math.max(1, Math.ceil(bytes / most)));
    for (let from = 0; from < rows; from += step) {
      const to = Math.min(rows, from + step);
      pieces.push({
        source: index,
        from: firstRow + from,
        to: firstRow + to,
        rowGroup,
        bytes: Math.round(bytes * (to - from) / rows),
      });
    }
  });
  return pieces;
}

/** One of several parts of the pieces, counted from 1. */
export interface Part {
  readonly number: number;
  readonly of: number;
}

/** The pieces of a part: neighbours, about as many bytes as every other part's. Each piece is in exactly one. */
export function piecesOfPart(pieces: readonly Piece[], { number, of }: Part): Piece[] {
  const total = Math.max(1, pieces.reduce((sum, { bytes }) => sum + bytes, 0));
  let before = 0;
  return pieces.filter(({ bytes }) => {
    const part = Math.min(of, Math.floor(before / total * of) + 1);
    before += bytes;
    return part === number;
  });
}

/** The documents of a piece, in order; empty ones are left out. @throws BadData where nothing of it can be read. */
export async function* documentsOf(open: OpenSource, piece: Piece, options: ReadOptions): AsyncGenerator<Found> {
  if (open.parquet) yield* parquetDocuments(open.parquet, piece, options.column);
  else if (open.source.format === "jsonl") yield* jsonDocuments(open.bytes, piece, options.column);
  else if (options.splitOn === "file") yield* wholeFile(open.bytes);
  else {
    const separator = options.splitOn === "blank-line" ? blankLines : literal(options.splitOn);
    for await (const record of records(open.bytes, piece.from, piece.to, separator)) {
      yield* textDocument(record, `document at byte ${record.offset}: `, true);
    }
  }
}

async function* parquetDocuments(file: ParquetFile, { from, to }: Piece, column: string): AsyncGenerator<Found> {
  const values = await readRows(file, column, from, to);
  for (let index = 0; index < values.length; index++) {
    const value = values[index];
    if (value === null || value === undefined) continue;
    if (!(value instanceof Uint8Array)) yield { bad: `row ${from + index}: its ${column} is no text` };
    else yield* textDocument({ offset: 0, bytes: value }, `row ${from + index}: `, false);
  }
}

async function* jsonDocuments(source: ByteSource, piece: Piece, column: string): AsyncGenerator<Found> {
  for await (const record of records(source, piece.from, piece.to, lines)) {
    const where = `line at byte ${record.offset}: `;
    for (const line of textDocument(record, where, true)) {
      if ("bad" in line) yield line;
      else yield* jsonDocument(line.text, where, column);
    }
  }
}

function* jsonDocument(line: string, where: string, column: string): Generator<Found> {
  if (line.trim() === "") return;
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch (error) {
    return yield { bad: `${where}${(error as Error).message.replaceAll("\n", " ")}` };
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    return yield { bad: `${where}it is no JSON object` };
  }
  const text = (value as { readonly [key: string]: unknown })[column];
  if (text === null) return;
  if (text === undefined) {
    const names = Object.keys(value).join(", ");
    yield { bad: `${where}it has no column ${column}, only ${names}; choose one with --column` };
  } else if (typeof text !== "string") yield { bad: `${where}its ${column} is no text` };
  else if (!text.isWellFormed()) yield { bad: `${where}its ${column} has half a surrogate pair` };
  else if (text !== "") yield { text, bytes: Buffer.byteLength(text) };
}

async function* wholeFile(source: ByteSource): AsyncGenerator<Found> {
  const { bytes } = source.version;
  if (bytes > LONGEST_RECORD) yield { bad: tooLong("", bytes) };
  else yield* textDocument({ offset: 0, bytes: new Uint8Array(await source.slice(0, bytes)) }, "", false, true);
}

/** Decodes a document. Line ends around it go where `trim` says so, and a byte order mark at the start of a file. */
function* textDocument({ offset, bytes }: Record, where: string, trim: boolean, file = trim): Generator<Found> {
  if (bytes.length > LONGEST_RECORD) return yield { bad: tooLong(where, bytes.length) };
  let [start, end] = [0, bytes.length];
  if (file && offset === 0 && bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf) start = 3;
  while (trim && start < end && isLineEnd(bytes[start])) start++;
  while (trim && start < end && isLineEnd(bytes[end - 1])) end--;
  const part = bytes.subarray(start, end);
  if (part.length === 0) return;
  let text: string;
  try {
    text = utf8.decode(part);
  } catch {
    const utf16 = (bytes[0] === 0xff && bytes[1] === 0xfe) || (bytes[0] === 0xfe && bytes[1] === 0xff);
    const byte = offset + start + validPrefix(part);
    const hint = utf16 ? ", but looks like UTF-16; convert it with iconv -f UTF-16 -t UTF-8" : "";
    return yield { bad: `${where}it is no valid UTF-8 at byte ${byte}${hint}` };
  }
  yield { text, bytes: part.length };
}

function tooLong(where: string, bytes: number): string {
  return `${where}a document of ${bytes} bytes is too long, at most ${LONGEST_RECORD}; --split-on cuts text into documents`;
}

function isLineEnd(byte: number): boolean {
  return byte === 10 || byte === 13;
}

function newUtf8(): TextDecoder {
  return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
}

/** How many bytes are valid or could go on validly. */
function validPrefix(bytes: Uint8Array): number {
  let [good, bad] = [0, bytes.length];
  while (bad - good > 1) {
    const middle = (good + bad) >>> 1;
    try {
      newUtf8().decode(bytes.subarray(0, middle), { stream: true });
      good = middle;
    } catch {
      bad = middle;
    }
  }
  return good;
}
