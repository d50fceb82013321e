/** A training run's folder as those who want its model see it. It knows nothing of training. */
import { basename, join } from "node:path";
import { UserError } from "./errors.ts";
import { explainIo } from "./files.ts";

/** Where runs stand unless they are told otherwise. */
export const RUNS = "runs";

/** In a run's folder: the name of its latest checkpoint. */
const LATEST = join("checkpoints", "latest");

/** The run under `root` that wrote a checkpoint last. @throws UserError where there is none. */
export async function newestTrained(root = RUNS): Promise<string> {
  const newest = await newestBy([LATEST], root);
  if (newest !== undefined) return newest;
  throw new UserError(`Train a model first (deno task train) or give one with --model: ${root} holds no checkpoint`);
}

/** The run under `root` that was worked on last, trained far enough for a checkpoint or not. @throws UserError where there is none. */
export async function newestRun(root = RUNS): Promise<string> {
  const newest = await newestBy(["config.json", "metrics.jsonl", LATEST], root);
  if (newest !== undefined) return newest;
  throw new UserError(`No run found in ${root}: start one with \`deno task train\``);
}

/** The run under `root` that wrote one of these files last; undefined where none has. */
async function newestBy(files: readonly string[], root: string): Promise<string | undefined> {
  const runs = await Promise.all((await runNames(root)).map(async (name) => {
    const folder = join(root, name);
    const times = files.map((file) => Deno.stat(join(folder, file)).then(({ mtime }) => Number(mtime), () => 0));
    return { folder, time: Math.max(...await Promise.all(times)) };
  }));
  return runs.reduce((a, b) => b.time > a.time ? b : a, { folder: undefined as string | undefined, time: 0 }).folder;
}

/** Names of the folders under `root`; none where it is missing. */
export async function runNames(root = RUNS): Promise<string[]> {
  const found: string[] = [];
  try {
    for await (const { name, isFile } of Deno.readDir(root)) if (!isFile) found.push(name); // or a link to a folder
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw explainIo("read", root, error);
  }
  return found.filter((name) => !name.startsWith("."));
}

/** The folder of the model that `folder` stands for: a run's latest checkpoint, else the folder itself. */
export async function modelFolder(folder: string): Promise<string> {
  const latest = join(folder, LATEST);
  const name = await Deno.readTextFile(latest).catch((error) => {
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) return undefined;
    throw explainIo("read", latest, error);
  });
  return name === undefined ? folder : join(folder, "checkpoints", basename(name.trim()));
}
