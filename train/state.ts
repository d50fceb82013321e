/**
 * A run's checkpoints: each a Hugging Face folder with the optimizer's moments and the run's place beside the weights. It
 * knows what must be kept to go on with the same bits, and nothing of how the numbers come about.
 */
import { basename, join } from "node:path";
import { readFolder, sourceOf, writeFolder } from "../model/checkpoint.ts";
import { UserError } from "../model/errors.ts";
import { explainIo, writeAll, writeAtomically } from "../model/files.ts";
import { readJson } from "../model/json_fields.ts";
import { openSafetensors, writeSafetensors } from "../model/safetensors.ts";
import type { Tokenizer } from "../model/tokenizer.ts";
import { type Config, parseConfig } from "./config.ts";
import type { Learner } from "./learner.ts";
import type { LossScaling } from "./precision.ts";
import { loadWeights } from "./starting_point.ts";

/** Where a run stands after an update. */
export interface TrainerState {
  readonly version: 1;
  /** Updates done. */
  readonly step: number;
  /** Targets learned from. */
  readonly tokens: number;
  /** Held-out loss after this update, where it was measured. */
  readonly heldOutLoss: number | null;
  /** Lowest held-out loss up to now. */
  readonly bestLoss: number | null;
  /** Where the loss scale stands; null where the precision has none. */
  readonly lossScaling: LossScaling | null;
  readonly config: Config;
  readonly tokenizerHash: string;
  /** Identity of the prepared data. */
  readonly dataHash: string;
}

export interface Checkpoint {
  readonly folder: string;
  readonly state: TrainerState;
}

const STATE = "trainer_state.json";
const OPTIMIZER = "optimizer.safetensors";
const MOMENTS = { expAvg: "exp_avg", expAvgSq: "exp_avg_sq" } as const;

/**
 * Writes `checkpoints/step-NNNNNN` of a run, whole or not at all, then points `latest` at it.
 *
 * @returns the folder.
 * @throws UserError where the disk refuses; checkpoints written before stand as they were.
 */
export async function saveCheckpoint(
  run: string,
  learner: Learner,
  tokenizer: Tokenizer,
  state: TrainerState,
): Promise<string> {
  const name = `step-${String(state.step).padStart(6, "0")}`;
  const folder = join(run, "checkpoints", name);
  await writeFolder(folder, {
    config: learner.config,
    tokenizer,
    tensors: learner.tensors("parameter"),
    extra: async (temporary) => {
      const moments = (Object.keys(MOMENTS) as (keyof typeof MOMENTS)[]).flatMap((kind) =>
        learner.tensors(kind).map((tensor) => [`${tensor.name}.${MOMENTS[kind]}`, sourceOf(tensor, "F32")] as const)
      );
      await writeSafetensors(join(temporary, OPTIMIZER), moments);
      await Deno.writeTextFile(join(temporary, STATE), JSON.stringify(state, null, 2) + "\n");
    },
  });
  await pointAt(run, name);
  return folder;
}

async function pointAt(run: string, name: string): Promise<void> {
  await writeAtomically(join(run, "checkpoints", "latest"), (file) => {
    return writeAll(file, new TextEncoder().encode(`${name}\n`));
  });
}

/**
 * The newest checkpoint of a run that is whole. Those that aren't are passed over with a warning.
 *
 * @returns undefined where the run has none yet.
 * @throws UserError where it has some and none is whole.
 */
export async function findCheckpoint(run: string, warn: (line: string) => void): Promise<Checkpoint | undefined> {
  const folders = (await listFolders(run)).reverse();
  for (const folder of folders) {
    try {
      return await openCheckpoint(folder);
    } catch (error) {
      if (!(error instanceof UserError)) throw error;
      warn(`passing over ${folder}: ${error.message}`);
    }
  }
  if (folders.length === 0) return undefined;
  throw new UserError(`Cannot resume ${run}: none of its ${folders.length} checkpoints is whole; start a new run`);
}

/**
 * Makes a checkpoint the run's newest: `latest` names it, and those after it, which were passed over, are renamed to
 * `….damaged`, so that they don't count when checkpoints are removed.
 */
export async function goBackTo(run: string, { folder: chosen, state }: Checkpoint): Promise<void> {
  await pointAt(run, basename(chosen));
  for (const folder of (await listFolders(run)).filter((folder) => stepOf(folder) > state.step)) {
    const aside = `${folder}.damaged`;
    await remove(aside);
    await Deno.rename(folder, aside).catch((error) => {
      throw explainIo("rename", folder, error);
    });
  }
}

/** Reads a checkpoint's place and checks that all of its files are whole. */
async function openCheckpoint(folder: string): Promise<Checkpoint> {
  const state = await readState(folder);
  using weights = await readFolder(folder);
  using moments = await openSafetensors(join(folder, OPTIMIZER));
  for (const name of weights.names()) {
    for (const kind of Object.values(MOMENTS)) {
      const shape = moments.tensors.get(`${name}.${kind}`)?.shape;
      if (shape?.join() !== weights.shape(name).join()) {
        throw new UserError(`Cannot use ${moments.path}: ${name}.${kind} is missing or of another shape`);
      }
    }
  }
  return { folder, state };
}

async function readState(folder: string): Promise<TrainerState> {
  const file = join(folder, STATE);
  const state = await readJson(file) as TrainerState;
  const { lossScaling = null } = state ?? {};
  const scaling = lossScaling === null ? [] : scalingNames.map((name) => lossScaling[name]);
  const counts = [state?.step, state?.tokens, ...scaling];
  const hashes = [state?.tokenizerHash, state?.dataHash];
  const whole = state?.version === 1 && counts.every((count) => Number.isSafeInteger(count) && count >= 0) &&
    hashes.every((hash) => typeof hash === "string");
  if (!whole) throw new UserError(`Cannot use ${file}: it isn't the state of a run of this version`);
  return { ...state, lossScaling, config: parseConfig(state.config, file) };
}

const scalingNames = ["scale", "streak", "applied", "skipped"] as const;

/** Loads weights, moments and loss scale: the learner is then where the checkpoint left off. */
export async function restore(learner: Learner, { folder, state }: Checkpoint): Promise<void> {
  await loadWeights(learner, folder);
  using moments = await openSafetensors(join(folder, OPTIMIZER));
  for (const kind of Object.keys(MOMENTS) as (keyof typeof MOMENTS)[]) {
    for (const { name } of learner.tensors(kind)) {
      await learner.load(kind, name, await moments.readF32(`${name}.${MOMENTS[kind]}`));
    }
  }
  if (state.lossScaling !== null) await learner.loadLossScaling(state.lossScaling);
}

/**
 * Removes checkpoints but the newest `keep` and the one with the lowest held-out loss, and what writers that died left.
 *
 * @throws UserError where something can't be removed.
 */
export async function pruneCheckpoints(run: string, keep: number): Promise<void> {
  const folders = await listFolders(run);
  const losses = await Promise.all(folders.map(async (folder) => {
    const state = await readState(folder).catch(() => undefined);
    return { folder, loss: state?.heldOutLoss ?? Infinity };
  }));
  const best = losses.reduce((a, b) => b.loss < a.loss ? b : a, { folder: "", loss: Infinity }).folder;
  const doomed = folders.slice(0, -keep).filter((folder) => folder !== best);
  for (const folder of doomed) {
    // Renamed first, so that a half removed folder never looks like a checkpoint.
    const away = `${folder}.tmp-removed`;
    await remove(away);
    await Deno.rename(folder, away).catch((error) => {
      throw explainIo("remove", folder, error);
    });
    await remove(away);
  }
  for (const name of await names(run)) {
    if (/^(step-\d+|latest)\.tmp-/.test(name)) await remove(join(run, "checkpoints", name));
  }
}

/** Checkpoint folders, by step. */
async function listFolders(run: string): Promise<string[]> {
  const steps = (await names(run)).filter((name) => /^step-\d{6,}$/.test(name));
  return steps.sort((a, b) => stepOf(a) - stepOf(b)).map((name) => join(run, "checkpoints", name));
}

function stepOf(folder: string): number {
  return Number(basename(folder).slice("step-".length));
}

async function names(run: string): Promise<string[]> {
  const folder = join(run, "checkpoints");
  const found: string[] = [];
  try {
    for await (const { name } of Deno.readDir(folder)) found.push(name);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw explainIo("read", folder, error);
  }
  return found;
}

async function remove(path: string): Promise<void> {
  await Deno.remove(path, { recursive: true }).catch((error) => {
    if (!(error instanceof Deno.errors.NotFound)) throw explainIo("remove", path, error);
  });
}
