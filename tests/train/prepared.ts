/** Help for tests of prepare: temporary folders, what was prepared as text again, fixtures in Parquet. */
import { join } from "node:path";
import { parquetWriteBuffer } from "hyparquet-writer";
import { Compression, readParquet, writeParquet, WriterPropertiesBuilder, WriterVersion } from "parquet-wasm";
import type { Manifest, Split } from "../../train/manifest.ts";
import { prepare, type PrepareOptions } from "../../train/prepare.ts";
import { Shard } from "../../train/shards.ts";

/** The byte tokenizer's end-of-text. */
export const END = 256;

export async function inFolder(test: (folder: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await test(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** Writes files by their path within the folder. */
export async function writeFiles(folder: string, files: Readonly<Record<string, string | Uint8Array>>): Promise<void> {
  for (const [name, content] of Object.entries(files)) {
    const path = join(folder, name);
    await Deno.mkdir(join(path, ".."), { recursive: true });
    await (typeof content === "string" ? Deno.writeTextFile(path, content) : Deno.writeFile(path, content));
  }
}

/** Prepares with bytes as tokens and nothing held out, quietly. */
export function prepareBytes(
  out: string,
  input: string | readonly string[],
  more: Partial<PrepareOptions> = {},
): Promise<Manifest> {
  return prepare({
    input: typeof input === "string" ? [input] : input,
    tokenizer: "bytes",
    context: 7,
    out,
    validation: 0,
    workers: 1,
    quiet: true,
    ...more,
  });
}

/** All tokens of a split without padding. */
export function tokensOf(folder: string, { splits }: Manifest, split: Split = "train"): number[] {
  return splits[split].shards.flatMap(({ file }) => {
    using shard = new Shard(join(folder, file));
    shard.verify();
    return [...shard.rows(0, shard.header.rows)].slice(0, shard.header.tokens);
  });
}

/** The documents of a split that was prepared with bytes as tokens. */
export function documentsOf(folder: string, manifest: Manifest, split: Split = "train"): string[] {
  const documents: number[][] = [];
  for (const token of tokensOf(folder, manifest, split)) {
    if (token === END) documents.push([]);
    else documents.at(-1)!.push(token);
  }
  return documents.map((bytes) => new TextDecoder().decode(Uint8Array.from(bytes)));
}

/** Every file of a folder with its bytes. */
export function contentOf(folder: string): Map<string, string> {
  const files = new Map<string, string>();
  for (const { name, isDirectory } of Deno.readDirSync(folder)) {
    const path = join(folder, name);
    if (isDirectory) contentOf(path).forEach((content, inner) => files.set(`${name}/${inner}`, content));
    else files.set(name, Deno.readFileSync(path).reduce((text, byte) => text + String.fromCharCode(byte), ""));
  }
  return new Map([...files].sort());
}

export interface ParquetOptions {
  readonly codec?: keyof typeof Compression;
  readonly version?: keyof typeof WriterVersion;
  readonly rowGroup?: number;
  readonly dictionary?: boolean;
}

/** A Parquet file with columns `id` and `text`, written by arrow-rs. */
export function parquet(texts: readonly (string | null)[], options: ParquetOptions = {}): Uint8Array {
  const { codec = "SNAPPY", version = "V1", rowGroup = 1000, dictionary = true } = options;
  const plain = plainParquet(texts);
  const properties = new WriterPropertiesBuilder()
    .setCompression(Compression[codec])
    .setWriterVersion(WriterVersion[version])
    .setDictionaryEnabled(dictionary)
    .setMaxRowGroupSize(rowGroup)
    .build();
  return writeParquet(readParquet(plain), properties);
}

/** The same by hyparquet-writer, uncompressed; the values may be bytes that are no UTF-8. */
export function plainParquet(texts: readonly (string | Uint8Array | null)[], rowGroupSize = 1000): Uint8Array {
  const type = texts.some((text) => text instanceof Uint8Array) ? "BYTE_ARRAY" : "STRING";
  const columnData = [
    { name: "id", data: texts.map((_, index) => index), type: "INT32" as const },
    { name: "text", data: [...texts], type: type as "STRING" },
  ];
  return new Uint8Array(parquetWriteBuffer({ columnData, codec: "UNCOMPRESSED", rowGroupSize }));
}
