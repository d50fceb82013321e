/** The folder of a run: a new one that nothing stood in, or the one to go on with. It knows no training. */
import { join } from "node:path";
import { shellWord } from "../model/arguments.ts";
import { UserError } from "../model/errors.ts";
import { exists, explainIo, writeAll, writeAtomically } from "../model/files.ts";
import { readJson } from "../model/json_fields.ts";
import { newestRun, runNames, RUNS } from "../model/runs.ts";
import { type Config, parseConfig, resumedConfig, type Settings } from "./config.ts";
import { type Checkpoint, findCheckpoint } from "./state.ts";

const CONFIG = "config.json";
const LOCK = ".lock";
/** Which kernels the run computes with. */
export const KERNELS = "kernels.json";
/** How fast its ranks are, where they share updates out by speed. */
export const SPEEDS = "speeds.json";
const LEFTOVER = /^(config\.json|kernels\.json|speeds\.json|metrics\.jsonl|samples\.txt)\.tmp-/;

/** What to type to go on with a run. */
export function resumeCommand(run: string): string {
  return `deno task train --out ${shellWord(run)} --resume`;
}

export interface Run extends Disposable {
  readonly folder: string;
  readonly config: Config;
  /** Where to go on; undefined at the beginning. */
  readonly checkpoint: Checkpoint | undefined;
}

/**
 * Takes the run's folder for this process and writes its config.json.
 *
 * @throws UserError where a new run would overwrite something, a resumed one has other settings, or another process has it.
 */
export async function openRun(settings: Settings, warn: (line: string) => void): Promise<Run> {
  const { config, given } = settings;
  if (!config.resume) {
    const folder = config.out === "" ? await claimFolder(config.preset) : await makeFolder(config.out);
    return await occupy(folder, () => Promise.resolve({ config, checkpoint: undefined }));
  }
  const folder = config.out === "" ? await newestRun() : await standing(config.out);
  return await occupy(folder, async () => {
    const checkpoint = await findCheckpoint(folder, warn);
    const saved = checkpoint?.state.config ?? await readConfig(folder);
    return { config: saved === undefined ? config : resumedConfig(saved, given), checkpoint };
  });
}

/** A run to go on with, without taking it: its settings as they would be, and the checkpoint's folder where it has one. */
export async function standingRun({ config, given }: Settings): Promise<{ config: Config; checkpoint?: string }> {
  const folder = config.out === "" ? await newestRun() : await standing(config.out);
  const checkpoint = await findCheckpoint(folder, () => {});
  const saved = checkpoint?.state.config ?? await readConfig(folder);
  return { config: saved === undefined ? config : resumedConfig(saved, given), checkpoint: checkpoint?.folder };
}

/** These settings, or those of the run they go on with, changed as they say. @throws UserError where they may not. */
export async function settled(settings: Settings): Promise<Settings> {
  const { out, resume } = settings.config;
  if (!resume) return settings;
  const { config } = await standingRun(settings);
  return { ...settings, config: { ...config, out, resume } };
}

/** Locks the folder for as long as this process lives; the lock of a killed one is gone with it. */
async function occupy(folder: string, open: () => Promise<Omit<Run, "folder" | typeof Symbol.dispose>>): Promise<Run> {
  const path = join(folder, LOCK);
  try {
    using opened = new DisposableStack();
    const lock = opened.use(await Deno.open(path, { write: true, create: true }));
    if (!await lock.tryLock(true)) {
      throw new UserError(
        `Cannot use ${folder}: another process is training there; wait for it or choose another --out`,
      );
    }
    for await (const { name } of Deno.readDir(folder)) {
      if (LEFTOVER.test(name)) await Deno.remove(join(folder, name)); // of a writer that was killed
    }
    const run = await open();
    const text = JSON.stringify({ ...run.config, resume: false }, null, 2) + "\n";
    await writeAtomically(join(folder, CONFIG), (file) => writeAll(file, new TextEncoder().encode(text)));
    const held = opened.move();
    return {
      folder,
      ...run,
      [Symbol.dispose]() {
        held.dispose();
        if (run.checkpoint === undefined) removeUnused(folder);
      },
    };
  } catch (error) {
    throw explainIo("write", folder, error);
  }
}

/** Removes the folder of a run that never began, so that its name is free for the next try. */
function removeUnused(folder: string): void {
  try {
    const names = [...Deno.readDirSync(folder)].map(({ name }) => name);
    if (names.some((name) => ![LOCK, CONFIG, KERNELS, SPEEDS].includes(name))) return;
    Deno.removeSync(folder, { recursive: true });
  } catch {
    // It stays, and does no harm.
  }
}

async function makeFolder(folder: string): Promise<string> {
  try {
    await Deno.mkdir(folder, { recursive: true });
    for await (const { name } of Deno.readDir(folder)) {
      const next = `go on with it by --resume, or choose another --out`;
      throw new UserError(`Cannot start a run in ${folder}: it holds ${name} already; ${next}`);
    }
  } catch (error) {
    throw explainIo("write", folder, error);
  }
  return folder;
}

/** The next free folder: runs/tiny-001. */
async function claimFolder(preset: string): Promise<string> {
  await Deno.mkdir(RUNS, { recursive: true }).catch((error) => {
    throw explainIo("write", RUNS, error);
  });
  const numbers = (await runNames()).map((name) => {
    const [, base, digits] = /^(.*)-(\d+)$/.exec(name) ?? [];
    return base === preset ? Number(digits) : 0;
  });
  for (let number = 1 + Math.max(0, ...numbers);; number++) {
    const folder = join(RUNS, `${preset}-${String(number).padStart(3, "0")}`);
    try {
      await Deno.mkdir(folder);
      return folder;
    } catch (error) {
      if (!(error instanceof Deno.errors.AlreadyExists)) throw explainIo("write", folder, error);
    }
  }
}

async function standing(folder: string): Promise<string> {
  const there = await Deno.stat(folder).then(({ isDirectory }) => isDirectory, () => false);
  if (!there) throw new UserError(`Nothing to resume: there is no run ${folder}; start it without --resume`);
  return folder;
}

/** The settings of a run that was killed before its first checkpoint; undefined where it didn't get that far. */
async function readConfig(folder: string): Promise<Config | undefined> {
  const file = join(folder, CONFIG);
  if (!await exists(file)) return undefined;
  return parseConfig(await readJson(file), file);
}
