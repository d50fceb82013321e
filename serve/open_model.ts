/** From a path to a model that answers: finds the folder, reads its tokenizer and stop tokens, opens the engine in a Worker. */
import { basename, join, resolve } from "node:path";
import type { AdapterChoice } from "../kernels/gpu/adapters.ts";
import { UserError } from "../model/errors.ts";
import { standingFolder } from "../model/files.ts";
import { defaultSampling } from "../model/generate.ts";
import { Fields, readJson } from "../model/json_fields.ts";
import { modelFolder, newestTrained, RUNS } from "../model/runs.ts";
import { readChat } from "./chat.ts";
import { loadTokenizer } from "../model/tokenizer.ts";
import type { ServedModel } from "./job.ts";
import type { ModelSource } from "./models.ts";
import { Fleet, type FleetEngine } from "./fleet.ts";
import { type LastingOptions, openLasting } from "./lasting_engine.ts";
import { openRemoteEngine, type RemoteEngine } from "./remote_engine.ts";
import type { OpenEngineOptions } from "./wire.ts";

/** A model folder and what requests call it. */
export interface ModelPath {
  readonly folder: string;
  readonly name: string;
}

async function isFolder(path: string): Promise<boolean> {
  return await Deno.stat(path).then((info) => info.isDirectory, () => false);
}

async function isFile(path: string): Promise<boolean> {
  return await Deno.stat(path).then((info) => info.isFile, () => false);
}

/** Resolves DIR or NAME=DIR. A training run's folder stands for its latest checkpoint, under the run's name. */
export async function findModel(model: string): Promise<ModelPath> {
  const named = /^([^=]+)=(.+)$/s.exec(model);
  const [, name, path] = named && !await isFolder(model) ? named : [undefined, undefined, model];
  const folder = resolve(path);
  const standing = await standingFolder(await modelFolder(folder));
  if (!await isFolder(standing)) throw new UserError(`Give a model folder: ${path} is none`);
  return { folder: standing, name: name ?? basename(folder) };
}

/** The training run under `root` that wrote a checkpoint last. */
export async function newestRun(root = RUNS): Promise<ModelPath> {
  return await findModel(await newestTrained(root));
}

/** End-of-text ids: generation_config.json's, else config.json's, else none. Throws UserError for a file it can't use. */
async function readStopTokens(folder: string): Promise<readonly number[]> {
  for (const name of ["generation_config.json", "config.json"]) {
    const file = join(folder, name);
    if (!await isFile(file)) continue;
    const ids = new Fields(await readJson(file), file).tokens("eos_token_id");
    if (ids.length > 0) return ids;
  }
  return [];
}

export interface OpenModelOptions extends Omit<OpenEngineOptions, "adapter"> {
  /** An engine is opened for each. Default: one, on the adapter that WebGPU gives. */
  readonly adapters?: readonly (AdapterChoice | undefined)[];
  /** A Jinja file, or `chatml`, in place of the model's own chat template. */
  readonly chatTemplate?: string;
  /** Told when the engine fails and is opened again. Default: standard error. */
  readonly say?: (line: string) => void;
}

/** A model folder, or NAME=DIR, to be opened at the start or, if lazy, when first asked for. */
export async function modelSource(
  model: string | ModelPath,
  { lazy = false, ...options }: OpenModelOptions & { readonly lazy?: boolean } = {},
): Promise<ModelSource> {
  const path = typeof model === "string" ? await findModel(model) : model;
  return { name: path.name, lazy, open: () => openModel(path, options) };
}

/**
 * Opens a model folder for serving, its engine in a Worker of its own, and tries it. An engine that fails later is opened
 * again.
 * Throws UserError for a folder that can't be read or a model whose numbers aren't finite.
 */
export async function openModel(
  model: string | ModelPath,
  { chatTemplate, adapters = [undefined], say = console.error, ...options }: OpenModelOptions = {},
): Promise<ServedModel & AsyncDisposable> {
  const path = typeof model === "string" ? await findModel(model) : model;
  const tokenizer = await loadTokenizer(path.folder);
  const chat = await readChat(path.folder, tokenizer.config, chatTemplate);
  const named = await readStopTokens(path.folder);
  const stopTokens = named.length > 0 || tokenizer.endOfText === undefined ? named : [tokenizer.endOfText];
  const engine = await openFleet(adapters.map((adapter) => ({
    open: () => openTried(path.folder, { ...options, adapter }),
    say,
  })));
  return {
    name: path.name,
    engine,
    tokenizer,
    stopTokens: stopTokens.filter((id) => id < engine.vocabSize),
    chat,
    healthy: () => engine.healthy,
    [Symbol.asyncDispose]: () => engine[Symbol.asyncDispose](),
  };
}

/** Opens engines one after the other: which adapter a thread gets is the process's environment's to say. */
async function openFleet(members: readonly LastingOptions[]): Promise<FleetEngine> {
  const engines: FleetEngine[] = [];
  try {
    for (const member of members) engines.push(await openLasting(member));
  } catch (error) {
    for (const engine of engines) await engine[Symbol.asyncDispose]();
    throw error;
  }
  return engines.length === 1 ? engines[0] : new Fleet(engines);
}

async function openTried(folder: string, options: OpenEngineOptions): Promise<RemoteEngine> {
  const worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module", name: "engine" });
  const engine = await openRemoteEngine(worker, folder, options);
  try {
    const trial = engine.generate(Uint32Array.of(0), { ...defaultSampling, maxTokens: 1, temperature: 0 });
    for await (const { logprob } of trial) {
      if (!Number.isFinite(logprob)) {
        throw new UserError(`Give another model: ${folder} computes numbers that aren't finite`);
      }
    }
  } catch (error) {
    await engine[Symbol.asyncDispose]();
    throw error;
  }
  return engine;
}
