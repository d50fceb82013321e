/** A model folder that real engines serve. */
import { join } from "node:path";
import { bytes } from "./serving.ts";

const fixture = new URL("../fixtures/gpt2-tiny/", import.meta.url);

/** A model folder: PyTorch's tiny GPT-2, with a byte a token (so its vocabulary has no é). */
export async function modelFolder(): Promise<AsyncDisposable & { path: string }> {
  const parent = await Deno.makeTempDir();
  const path = join(parent, "tiny");
  await bytes.save(path);
  for (const file of ["config.json", "generation_config.json", "model.safetensors"]) {
    await Deno.copyFile(new URL(file, fixture), join(path, file));
  }
  return { path, [Symbol.asyncDispose]: () => Deno.remove(parent, { recursive: true }) };
}
