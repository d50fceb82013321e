/** The text column of Parquet files, row group by row group. It is the only place that knows hyparquet. */
import {
  type AsyncBuffer,
  type Compressors,
  type FileMetaData,
  parquetMetadataAsync,
  parquetRead,
  parquetSchema,
} from "hyparquet";
import { compressors as portable } from "hyparquet-compressors";
import { brotliDecompressSync, gunzipSync, zstdDecompressSync } from "node:zlib";
import type { ByteSource } from "./prepare_bytes.ts";

/** The content of a source is at fault, not the way to it: --skip-bad may go on after it. */
export class BadData extends Error {}

export interface RowGroup {
  readonly rows: number;
  /** Number of the group's first row in the file. */
  readonly firstRow: number;
  /** Bytes of the text column, uncompressed. */
  readonly bytes: number;
}

/** Told whether bytes are being decoded just now: corrupt ones can keep hyparquet from ever coming back. */
export type Watch = (decoding: boolean) => void;

export interface ParquetFile {
  readonly source: ByteSource;
  readonly watch: Watch;
  readonly metadata: FileMetaData;
  readonly groups: readonly RowGroup[];
}

/**
 * Deno's own decompressors where it has them: 3 to 30 times as fast as the portable ones. A page that grows past the length
 * in its header is refused.
 */
const compressors: Compressors = {
  ...portable,
  GZIP: (input, maxOutputLength) => gunzipSync(input, { maxOutputLength }),
  BROTLI: (input, maxOutputLength) => brotliDecompressSync(input, { maxOutputLength }),
  ZSTD: (input, maxOutputLength) => zstdDecompressSync(input, { maxOutputLength }),
};

/** Reads the footer and finds the column. @throws BadData where the file is corrupt or has no such column of text. */
export async function openParquet(source: ByteSource, column: string, watch: Watch = () => {}): Promise<ParquetFile> {
  const { metadata, groups } = await decoding(source, watch, async (file) => {
    if (file.byteLength < 12) throw new Error("it is too short");
    const metadata = await parquetMetadataAsync(file);
    checkColumn(metadata, column);
    let firstRow = 0;
    const groups = metadata.row_groups.map(({ num_rows, columns }, group) => {
      const meta = columns.find((each) => each.meta_data?.path_in_schema.join("\0") === column)?.meta_data;
      if (!meta) throw new Error(`row group ${group} lacks column ${column}`);
      const rows = Number(num_rows);
      if (!(rows >= 0) || Number(meta.num_values) !== rows) {
        throw new Error(`row group ${group} has ${meta.num_values} values in ${rows} rows`);
      }
      firstRow += rows;
      return { rows, firstRow: firstRow - rows, bytes: Number(meta.total_uncompressed_size) };
    });
    return { metadata, groups };
  });
  return { source, watch, metadata, groups };
}

/**
 * The column's values of some rows, undecoded.
 *
 * @throws BadData where they are corrupt.
 */
export async function readRows(file: ParquetFile, column: string, from: number, to: number): Promise<unknown[]> {
  const values = await decoding(file.source, file.watch, async (buffer) => {
    let rows: unknown[][] = [];
    await parquetRead({
      file: buffer,
      metadata: file.metadata,
      columns: [column],
      rowStart: from,
      rowEnd: to,
      compressors,
      useOffsetIndex: true,
      utf8: false,
      parsers: { stringFromBytes: (bytes: Uint8Array) => bytes },
      onComplete: (read) => rows = read,
    });
    return rows.map(([value]) => value);
  });
  if (values.length !== to - from) throw new BadData(`it is corrupt: ${values.length} rows, wanted ${to - from}`);
  return values;
}

/** Runs a reader; what it throws is the data's fault unless reading bytes failed. */
async function decoding<T>(source: ByteSource, watch: Watch, action: (file: AsyncBuffer) => Promise<T>): Promise<T> {
  const byteLength = source.version.bytes;
  let failed: { readonly error: unknown } | undefined;
  const slice = async (start: number, end = byteLength) => {
    const [from, to] = [start, end].map((at) => at < 0 ? byteLength + at : at);
    if (!(from >= 0 && to >= from && to <= byteLength)) throw new BadData(`bytes ${from} to ${to} aren't in the file`);
    try {
      watch(false);
      return await source.slice(from, to);
    } catch (error) {
      failed = { error };
      throw error;
    } finally {
      watch(true);
    }
  };
  try {
    watch(true);
    return await action({ byteLength, slice });
  } catch (error) {
    if (failed) throw failed.error;
    if (error instanceof BadData && !error.message.startsWith("bytes")) throw error;
    throw new BadData(`it is corrupt: ${(error as Error).message.replaceAll("\n", " ")}`);
  } finally {
    watch(false);
  }
}

function checkColumn(metadata: FileMetaData, column: string): void {
  const { children } = parquetSchema(metadata);
  const found = children.find(({ element }) => element.name === column);
  if (!found) {
    const names = children.map(({ element }) => element.name).join(", ");
    throw new BadData(`it has no column ${column}, only ${names}; choose one with --column`);
  }
  const { type, repetition_type, num_children } = found.element;
  if (type !== "BYTE_ARRAY" || repetition_type === "REPEATED" || num_children) {
    throw new BadData(`its column ${column} holds no text but ${type ?? "a structure"}; choose another with --column`);
  }
}
