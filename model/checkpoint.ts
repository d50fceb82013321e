/**
 * GPT-2 checkpoints as Hugging Face folders, read and written. It knows files and names; what the numbers mean, the model knows.
 */

import { join } from "node:path";
import { UserError } from "./errors.ts";
import { exists, explainIo, replaceFolder, standingFolder } from "./files.ts";
import { type FloatFormat, fromF32 } from "./float_formats.ts";
import { formatGenerationConfig, type GenerationConfig, parseGenerationConfig } from "./generation_config.ts";
import { formatGpt2Config, type Gpt2Config, gpt2Parameters, parseGpt2Config } from "./gpt2_config.ts";
import { readJson } from "./json_fields.ts";
import { openSafetensors, type SafetensorsFile, type TensorSource, writeSafetensors } from "./safetensors.ts";
import { quote } from "./safetensors_header.ts";
import type { Tokenizer } from "./tokenizer.ts";

const PREFIX = "transformer.";
const WEIGHTS = "model.safetensors";
const INDEX = "model.safetensors.index.json";
const TOKEN_TABLE = `${PREFIX}wte.weight`;
/** Copy of the token table that some files carry; GPT-2's head is tied to it. */
const HEAD = "lm_head.weight";
/** Constant causal masks that older versions of transformers saved among the weights. */
const MASK = /(^|\.)h\.\d+\.attn\.(bias|masked_bias)$/;
const FLOATS = ["F32", "F16", "BF16", "F64"];

/** A checkpoint folder whose config and tensor list have been checked; numbers are read when asked for. */
export interface Checkpoint extends Disposable {
  /** Where the files stand, links resolved. */
  readonly folder: string;
  readonly config: Gpt2Config;
  /** What names in the files begin with; names here always begin with `transformer.`. */
  readonly prefix: "" | "transformer.";
  /** From generation_config.json; undefined where there is none. */
  readonly generation: GenerationConfig | undefined;
  /** All parameters, in the order in which the model uses them. */
  names(): readonly string[];
  shape(name: string): readonly number[];
  /** F32, F16, BF16 or F64: how the file keeps it. */
  dtype(name: string): string;
  /** Values, or those of rows [from, to) of the first dimension. */
  readF32(name: string, rows?: readonly [from: number, to: number]): Promise<Float32Array>;
}

/** A tensor of the checkpoint: which file holds it, and under which name. */
interface Stored {
  readonly file: SafetensorsFile;
  readonly name: string;
}

/**
 * Opens a Hugging Face folder of a GPT-2: config.json, and model.safetensors or shards with their index.
 * @throws UserError naming the file and the fault, or all tensors that are missing, unexpected or wrongly shaped.
 */
export async function readFolder(folder: string): Promise<Checkpoint> {
  const place = await standingFolder(folder).catch((error) => {
    throw explainIo("read", folder, error);
  });
  const configFile = join(place, "config.json");
  const config = parseGpt2Config(await readJson(configFile), configFile);
  const generation = await readGeneration(place);
  using opened = new DisposableStack();
  const { tensors: stored, label } = await openWeights(place, opened);
  const prefix = [...stored.keys()].some((name) => name.startsWith(PREFIX)) ? PREFIX : "";
  const tensors = internalNames(stored, prefix);
  checkTensors(tensors, stored, gpt2Parameters(config), { prefix, label });
  const find = (name: string): Stored => {
    const found = tensors.get(name);
    if (found === undefined) throw new RangeError(`Cannot find tensor ${quote(name)} in ${label}`);
    return found;
  };
  const entry = (name: string) => find(name).file.tensors.get(find(name).name)!;
  const files = opened.move();
  return {
    folder: place,
    config,
    prefix,
    generation,
    names: () => gpt2Parameters(config).map(({ name }) => name),
    shape: (name) => entry(name).shape,
    dtype: (name) => entry(name).dtype,
    readF32: (name, rows) => find(name).file.readF32(find(name).name, rows),
    [Symbol.dispose]: () => files.dispose(),
  };
}

/** A tensor to write; where it gives pieces, it is never whole in memory. */
export interface FloatTensor {
  readonly name: string;
  readonly shape: readonly number[];
  readonly read: () => Float32Array | Promise<Float32Array>;
  /** The same values in pieces; each is done with when the next is asked for. */
  readonly pieces?: () => AsyncIterable<Float32Array>;
}

/** A tensor as a file is to keep it. */
export function sourceOf({ shape, read, pieces }: FloatTensor, dtype: FloatFormat): TensorSource {
  if (pieces !== undefined) return { dtype, shape, data: () => convert(pieces(), dtype) };
  return { dtype, shape, data: async () => fromF32(await read(), dtype) };
}

async function* convert(pieces: AsyncIterable<Float32Array>, dtype: FloatFormat): AsyncGenerator<Uint8Array> {
  for await (const piece of pieces) yield fromF32(piece, dtype);
}

/** What a checkpoint folder is to hold. */
export interface FolderContent {
  readonly config: Gpt2Config;
  /** Parameters under the names that stand in the file; each is asked for its values when its turn comes. */
  readonly tensors: Iterable<FloatTensor>;
  readonly tokenizer?: Pick<Tokenizer, "save" | "endOfText">;
  /** Format of the weights; F32 by default. */
  readonly dtype?: FloatFormat;
  /** By default only the tokens that begin and end a text. */
  readonly generation?: GenerationConfig;
  /** Adds more files (optimizer state) to the folder at the given path before it takes its place. */
  readonly extra?: (temporary: string) => Promise<void>;
}

/**
 * Writes a checkpoint folder, whole or not at all: beside, synced, renamed; an existing checkpoint of that name is replaced.
 * @throws UserError where the disk refuses, or where `folder` holds what is no part of a checkpoint and would be lost.
 */
export async function writeFolder(folder: string, content: FolderContent): Promise<void> {
  await refuseForeign(folder);
  const { config, tokenizer, dtype = "F32" } = content;
  const end = config.eos_token_id ?? tokenizer?.endOfText;
  const generation = content.generation ??
    { bos_token_id: config.bos_token_id, eos_token_id: end === undefined ? [] : [end] };
  await replaceFolder(folder, async (temporary) => {
    await writeJson(join(temporary, "config.json"), formatGpt2Config(config));
    await writeJson(join(temporary, "generation_config.json"), formatGenerationConfig(generation));
    const tensors = [...content.tensors].map((tensor) => [tensor.name, sourceOf(tensor, dtype)] as const);
    await writeSafetensors(join(temporary, WEIGHTS), tensors, { format: "pt" });
    await tokenizer?.save(temporary);
    await content.extra?.(temporary);
  });
}

async function writeJson(path: string, value: unknown): Promise<void> {
  await Deno.writeTextFile(path, JSON.stringify(value, null, 2) + "\n");
}

/** A checkpoint's folder may be replaced; a folder with anything else in it was named by mistake. */
async function refuseForeign(folder: string): Promise<void> {
  try {
    for await (const entry of Deno.readDir(folder)) {
      if (entry.isFile && /\.(json|safetensors|jinja)$|^merges\.txt$/.test(entry.name)) continue;
      throw new UserError(
        `Cannot replace ${folder}: it holds ${
          quote(entry.name)
        }, which is no part of a checkpoint; choose another folder`,
      );
    }
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw explainIo("replace", folder, error);
  }
}

async function readGeneration(folder: string): Promise<GenerationConfig | undefined> {
  const file = join(folder, "generation_config.json");
  return await exists(file) ? parseGenerationConfig(await readJson(file), file) : undefined;
}

/** All tensors of the folder by the names they have there; `label` is the file to name in errors. */
async function openWeights(
  folder: string,
  opened: DisposableStack,
): Promise<{ tensors: Map<string, Stored>; label: string }> {
  const single = join(folder, WEIGHTS);
  const index = join(folder, INDEX);
  if (await exists(single) || !(await exists(index))) {
    const file = opened.use(await openSafetensors(single));
    return { tensors: new Map([...file.tensors.keys()].map((name) => [name, { file, name }])), label: single };
  }
  const tensors = new Map<string, Stored>();
  const shards = new Map<string, SafetensorsFile>();
  for (const [name, shard] of weightMap(await readJson(index), index)) {
    let file = shards.get(shard);
    if (file === undefined) shards.set(shard, file = opened.use(await openSafetensors(join(folder, shard))));
    if (!file.tensors.has(name)) {
      throw new UserError(`Cannot use ${file.path}: it lacks tensor ${quote(name)}, which ${index} places there`);
    }
    tensors.set(name, { file, name });
  }
  return { tensors, label: index };
}

function weightMap(json: unknown, index: string): [name: string, shard: string][] {
  const map = (json as { weight_map?: unknown } | null)?.weight_map;
  if (typeof map !== "object" || map === null || Array.isArray(map)) {
    throw new UserError(`Cannot use ${index}: weight_map: wanted an object of tensor names and files`);
  }
  return Object.entries(map).map(([name, shard]) => {
    if (typeof shard !== "string" || !/^[\w.-]+\.safetensors$/.test(shard)) {
      throw new UserError(
        `Cannot use ${index}: weight_map: ${quote(name)}: wanted the name of a shard beside the index`,
      );
    }
    return [name, shard];
  });
}

/** Tensors by their internal names, without masks and the head's copy. A file may hold the head in the table's stead. */
function internalNames(stored: ReadonlyMap<string, Stored>, prefix: string): Map<string, Stored> {
  const tensors = new Map<string, Stored>();
  for (const [name, tensor] of stored) {
    if (name === HEAD || MASK.test(name)) continue;
    tensors.set(prefix === PREFIX ? name : PREFIX + name, tensor);
  }
  const head = stored.get(HEAD);
  if (head !== undefined && !tensors.has(TOKEN_TABLE)) tensors.set(TOKEN_TABLE, head);
  return tensors;
}

function checkTensors(
  tensors: ReadonlyMap<string, Stored>,
  stored: ReadonlyMap<string, Stored>,
  expected: readonly { readonly name: string; readonly shape: readonly number[] }[],
  { prefix, label }: { readonly prefix: string; readonly label: string },
): void {
  const inFile = (name: string) => prefix + name.slice(PREFIX.length);
  const missing = expected.filter(({ name }) => !tensors.has(name)).map(({ name }) => inFile(name));
  const shapes = new Map(expected.map(({ name, shape }) => [name, shape]));
  const unexpected: string[] = [];
  const wrong: string[] = [];
  const check = ({ file, name }: Stored, shape: readonly number[]) => {
    const { shape: found, dtype } = file.tensors.get(name)!;
    if (found.join() !== shape.join()) {
      wrong.push(`${plain(name)} is (${found.join(", ")}), wanted (${shape.join(", ")})`);
    } else if (!FLOATS.includes(dtype)) wrong.push(`${plain(name)} is ${dtype}, wanted ${FLOATS.join(", ")}`);
  };
  for (const [name, tensor] of tensors) {
    const shape = shapes.get(name);
    if (shape === undefined) unexpected.push(plain(tensor.name));
    else check(tensor, shape);
  }
  const head = stored.get(HEAD);
  if (head !== undefined && tensors.get(TOKEN_TABLE) !== head) check(head, shapes.get(TOKEN_TABLE)!);
  const faults = [["missing", missing], ["unexpected", unexpected], ["wrong", wrong]] as const;
  const found = faults.filter(([, names]) => names.length > 0).map(([kind, names]) => `${kind}: ${names.join(", ")}`);
  if (found.length > 0) throw new UserError(`Cannot use ${label} with its config.json: ${found.join("; ")}`);
}

/** A name as it is where it is harmless, else quoted. */
function plain(name: string): string {
  return /^[\w.-]{1,100}$/.test(name) ? name : quote(name);
}
