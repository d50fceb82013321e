/** Reads what tests/fixtures/make_gpt2.py wrote: batches and what PyTorch computes with them. */

import { fileURLToPath } from "node:url";
import { openSafetensors, toF32 } from "../../model/safetensors.ts";

export function fixture(name: string): string {
  return fileURLToPath(new URL(`../fixtures/${name}`, import.meta.url));
}

/** The content of a folder's expected.safetensors. */
export interface Expected {
  /** Ten batches of B rows of T tokens. */
  readonly tokens: number[][][];
  /** The same shape; -100 is ignored. */
  readonly targets: number[][][];
  /** The first batch's loss, exact. */
  readonly loss: number;
  readonly losses: number[];
  readonly gradNorms: number[];
  readonly settings: {
    readonly lr: number;
    readonly betas: [number, number];
    readonly eps: number;
    readonly weightDecay: number;
    readonly clip: number;
  };
  /** Any tensor by its full name, such as `logits` or `gradient.transformer.wte.weight`; undefined where it isn't kept. */
  f32(name: string): Float32Array | undefined;
}

export async function readExpected(folder: string): Promise<Expected> {
  using file = await openSafetensors(`${fixture(folder)}/expected.safetensors`);
  const bytes = new Map<string, Uint8Array>();
  for (const name of file.tensors.keys()) bytes.set(name, await file.read(name));
  const [steps, B, T] = file.tensors.get("tokens")!.shape;
  const batches = (name: string) => {
    const values = [...new Int32Array(bytes.get(name)!.buffer)];
    const rows = Array.from({ length: steps * B }, (_, row) => values.slice(row * T, (row + 1) * T));
    return Array.from({ length: steps }, (_, step) => rows.slice(step * B, (step + 1) * B));
  };
  const doubles = (name: string) => [...new Float64Array(bytes.get(name)!.buffer)];
  const setting = (name: string) => Number(file.metadata[name]);
  const { tensors } = file;
  return {
    tokens: batches("tokens"),
    targets: batches("targets"),
    loss: doubles("loss")[0],
    losses: doubles("losses"),
    gradNorms: doubles("gradNorms"),
    settings: {
      lr: setting("lr"),
      betas: [setting("beta1"), setting("beta2")],
      eps: setting("eps"),
      weightDecay: setting("weightDecay"),
      clip: setting("clip"),
    },
    f32: (name) => bytes.has(name) ? toF32({ dtype: tensors.get(name)!.dtype, data: bytes.get(name)! }) : undefined,
  };
}
