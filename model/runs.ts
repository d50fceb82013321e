/** A training run's folder as those who want its model see it. It knows nothing of training. */
import { basename, join } from "node:path";
import { UserError } from "./errors.ts";
import { explainIo } from "./files.ts";

/** Where runs stand unless they are told otherwise. */
export const RUNS = "runs";

/** The run under `root` that wrote a checkpoint last. @throws UserError where there is none. */
export async function newestTrained(root = RUNS): Promise<string> {
  const runs = await Promise.all((await runNames(root)).map(async (name) => {
    const latest = join(root, name, "checkpoints", "latest");
    return { name, time: await Deno.stat(latest).then(({ mtime }) => Number(mtime), () => 0) };
  }));
  const newest = runs.reduce((a, b) => b.time > a.time ? b : a, { name: "", time: 0 });
  if (newest.time > 0) return join(root, newest.name);
  throw new UserError(`Train a model first (deno task train) or give one with --model: ${root} holds no checkpoint`);
}

/** The run under `root` that was worked on last, trained far enough for a checkpoint or not. @throws UserError where there is none. */
export async function newestRun(root = RUNS): Promise<string> {
  const runs = await Promise.all((await runNames(root)).map(async (name) => {
    const times = await Promise.all(["config.json", "metrics.jsonl", "checkpoints/latest"].map((file) => {
      return Deno.stat(join(root, name, file)).then(({ mtime }) => Number(mtime), () => 0);
    }));
    return { folder: join(root, name), time: Math.max(...times) };
  }));
  const newest = runs.reduce((a, b) => b.time > a.time ? b : a, { folder: "", time: 0 });
  if (newest.time === 0) throw new UserError(`No run found in ${root}: start one with \`deno task train\``);
  return newest.folder;
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
  const latest = join(folder, "checkpoints", "latest");
  const name = await Deno.readTextFile(latest).catch((error) => {
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) return undefined;
    throw explainIo("read", latest, error);
  });
  return name === undefined ? folder : join(folder, "checkpoints", basename(name.trim()));
}
