/** A training run's folder as those who want its model see it. It knows nothing of training. */
import { basename, join } from "node:path";
import { explainIo } from "./files.ts";

/** The folder of the model that `folder` stands for: a run's latest checkpoint, else the folder itself. */
export async function modelFolder(folder: string): Promise<string> {
  const latest = join(folder, "checkpoints", "latest");
  const name = await Deno.readTextFile(latest).catch((error) => {
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) return undefined;
    throw explainIo("read", latest, error);
  });
  return name === undefined ? folder : join(folder, "checkpoints", basename(name.trim()));
}
