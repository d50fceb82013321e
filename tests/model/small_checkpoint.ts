/** A checkpoint of a few numbers, each of them known, to write and to read back. */

import { type FolderContent, readFolder } from "../../model/checkpoint.ts";
import { type Gpt2Config, gpt2Parameters, parseGpt2Config } from "../../model/gpt2_config.ts";

export const small = { model_type: "gpt2", n_layer: 1, n_head: 2, n_embd: 8, n_positions: 5, vocab_size: 11 };
export const config = parseGpt2Config(small, "config.json");

/** Every element of a tensor is different, and different from every other tensor's. */
export function numbered({ shape }: { shape: readonly number[] }, tensor: number): Float32Array {
  const length = shape.reduce((a, b) => a * b);
  return Float32Array.from({ length }, (_, i) => tensor + (i + 1) / (length + 1));
}

/** Parameters numbered from `offset`. */
export function contentOf(config: Gpt2Config, offset = 0): FolderContent {
  const tensors = gpt2Parameters(config).map((parameter, i) => ({
    ...parameter,
    read: () => numbered(parameter, i + offset),
  }));
  return { config, tensors };
}

/** All parameters of a checkpoint. */
export async function values(folder: string): Promise<Map<string, Float32Array>> {
  using checkpoint = await readFolder(folder);
  const read = new Map<string, Float32Array>();
  for (const name of checkpoint.names()) read.set(name, await checkpoint.readF32(name));
  return read;
}
