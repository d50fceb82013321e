/** Which files the inputs of prepare mean: paths, folders, URLs, Hub datasets, the embedded corpus. It reads no text. */
import { basename, extname, join } from "node:path";
import { UserError } from "../model/errors.ts";
import { explainIo } from "../model/files.ts";
import { CORPUS, corpusFiles } from "./corpus.ts";
import { type Location, openBytes } from "./prepare_bytes.ts";
import { type HubOptions, hubSources } from "./prepare_hub.ts";

export type Format = "text" | "jsonl" | "parquet";
export const FORMATS: readonly Format[] = ["text", "jsonl", "parquet"];

export interface Source {
  /** As the user named it; within a folder or dataset with the rest of the path. */
  readonly path: string;
  readonly format: Format;
  readonly location: Location;
  readonly bytes: number;
  /** What a server says of its version; undefined for local files. */
  readonly tag?: string;
  /** Milliseconds since 1970 at which a local file was changed last. */
  readonly modified?: number;
}

export interface SourceOptions extends HubOptions {
  /** For files whose names don't say it. */
  readonly format?: Format;
}

const EXTENSIONS: Readonly<Record<string, Format>> = {
  ".txt": "text",
  ".text": "text",
  ".md": "text",
  ".jsonl": "jsonl",
  ".ndjson": "jsonl",
  ".json": "jsonl",
  ".parquet": "parquet",
};
/** Files that a folder is searched for: others of ours are often no data there. */
const SEARCHED = [".txt", ".text", ".jsonl", ".ndjson", ".parquet"];

/** The sources that the inputs mean, in order; within a folder sorted by path. @throws UserError where one means none. */
export async function findSources(inputs: readonly string[], options: SourceOptions): Promise<Source[]> {
  const found = await Promise.all(inputs.map((input) => find(input, options)));
  found.forEach((sources, index) => {
    if (sources.length === 0) {
      throw new UserError(
        `Cannot find data in ${inputs[index]}: no file ends in ${SEARCHED.join(", ")}; or give --format`,
      );
    }
  });
  return found.flat();
}

async function find(input: string, options: SourceOptions): Promise<Source[]> {
  if (input.startsWith("hf:")) {
    return (await hubSources(input, isSearched, options)).map((file) => ({
      ...file,
      format: formatOf(file.path, options.format),
    }));
  }
  if (/^https?:\/\//.test(input)) return [await urlSource(input, options.format)];
  const stat = await statOf(input);
  if (stat === undefined && input === CORPUS) {
    const files = await corpusFiles();
    return await Promise.all(files.map((file) => fileSource(file, `${CORPUS}/${basename(file)}`, "text")));
  }
  if (stat === undefined) throw new UserError(`Cannot find ${input}: no such file or folder`);
  if (!stat.isDirectory) return [await fileSource(input, input, formatOf(input, options.format))];
  const files = await filesWithin(input, (name) => options.format !== undefined || isSearched(name), new Set());
  files.sort((a, b) => a < b ? -1 : a > b ? 1 : 0);
  return await Promise.all(files.map((file) => fileSource(file, file, formatOf(file, options.format))));
}

/** Whether a folder's file of this name is taken for data. */
function isSearched(name: string): boolean {
  return SEARCHED.includes(extname(name).toLowerCase());
}

function formatOf(path: string, given: Format | undefined): Format {
  const format = given ?? EXTENSIONS[extname(path).toLowerCase()];
  if (format) return format;
  throw new UserError(`Cannot tell the format of ${path} by its name: give --format ${FORMATS.join(", --format ")}`);
}

async function fileSource(file: string, path: string, format: Format): Promise<Source> {
  const { size, mtime } = (await statOf(file))!;
  return { path, format, location: { kind: "file", path: file }, bytes: size, modified: mtime?.getTime() };
}

async function urlSource(url: string, format: Format | undefined): Promise<Source> {
  const location: Location = { kind: "url", url };
  const named = formatOf(new URL(url).pathname, format);
  using source = await openBytes(location);
  return { path: url, format: named, location, ...source.version };
}

async function filesWithin(folder: string, take: (name: string) => boolean, seen: Set<string>): Promise<string[]> {
  const found: string[] = [];
  try {
    const real = await Deno.realPath(folder);
    if (seen.has(real)) return found;
    seen.add(real);
    for await (const entry of Deno.readDir(folder)) {
      if (entry.name.startsWith(".")) continue;
      const path = join(folder, entry.name);
      const kind = entry.isSymlink ? await Deno.stat(path) : entry;
      if (kind.isDirectory) found.push(...await filesWithin(path, take, seen));
      else if (kind.isFile && take(entry.name)) found.push(path);
    }
  } catch (error) {
    throw explainIo("read", folder, error);
  }
  return found;
}

async function statOf(path: string): Promise<Deno.FileInfo | undefined> {
  try {
    return await Deno.stat(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) return undefined;
    throw explainIo("read", path, error);
  }
}
