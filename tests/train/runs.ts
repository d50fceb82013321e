/** Small runs for tests: prepared data of a few sentences, settings that finish in a second, and what a run left behind. */
import { createHash } from "node:crypto";
import { join } from "node:path";
import { loadTokenizer } from "../../model/tokenizer.ts";
import { readSettings, type Settings } from "../../train/config.ts";
import { type Console, createConsole } from "../../train/console.ts";
import type { OpenLearner } from "../../train/learner.ts";
import { train } from "../../train/loop.ts";
import { MANIFEST, type Manifest, TOKENIZER_FOLDER } from "../../train/manifest.ts";
import { ShardWriter } from "../../train/shard_writer.ts";
import { openFakeLearner } from "./fake_learner.ts";

export const CONTEXT = 16;

const SENTENCES = [
  "The people of the United States are free. ",
  "We the people ask for peace and for bread. ",
  "It rains on the sea and on the land. ",
];

/** Documents of repeated sentences, held-out ones last, as `prepare` would leave them. */
export async function makeData(folder: string, { context = CONTEXT, repeat = 4 } = {}): Promise<void> {
  const tokenizer = await loadTokenizer("bytes");
  await Deno.mkdir(folder, { recursive: true });
  await tokenizer.save(join(folder, TOKENIZER_FOLDER));
  const { vocabSize } = tokenizer;
  const endOfText = tokenizer.endOfText!;
  const split = async (name: string, documents: readonly string[]) => {
    const file = `${name}.shard`;
    using writer = new ShardWriter(join(folder, file), { context, vocabSize, endOfText });
    for (const text of documents) writer.append(Uint32Array.from([endOfText, ...tokenizer.encode(text)]), true);
    const { rows, tokens } = writer.finish();
    const content = await Deno.readFile(join(folder, file));
    const sha256 = createHash("sha256").update(content).digest("hex");
    const count = { rows, tokens, documents: documents.length };
    const textBytes = documents.reduce((sum, text) => sum + text.length, 0);
    return { ...count, textBytes, shards: [{ file, ...count, bytes: content.length, sha256 }] };
  };
  const documents = Array.from({ length: 8 }, (_, i) => SENTENCES[i % 3].repeat(repeat + i));
  const manifest: Manifest = {
    format: "wgpt-rows",
    version: 1,
    context,
    vocabSize,
    endOfText,
    tokenizer: { folder: TOKENIZER_FOLDER, hash: tokenizer.hash },
    options: { column: "text", splitOn: "", validation: 0.2, seed: 1, shardTokens: 1e6 },
    sources: [],
    splits: { train: await split("train", documents), validation: await split("validation", documents.slice(0, 2)) },
    skipped: { files: 0, rowGroups: 0, documents: 0, reasons: [] },
  };
  await Deno.writeTextFile(join(folder, MANIFEST), JSON.stringify(manifest));
}

/** Flags of a run that takes a second or so. */
export const SMALL = [
  ...["--context", `${CONTEXT}`, "--n-layer", "1", "--n-head", "1", "--n-embd", "8", "--dropout", "0.1"],
  ...["--micro-batch", "2", "--batch-tokens", "64", "--steps", "24", "--warmup", "3", "--learning-rate", "0.02"],
  ...["--eval-every", "6", "--eval-batches", "2", "--sample-every", "12", "--sample-tokens", "8"],
  ...["--checkpoint-every", "6", "--keep-checkpoints", "2", "--sample-prompt", "The"],
];

export async function settings(...args: string[]): Promise<Settings> {
  const result = await readSettings(args);
  if ("help" in result) throw new Error("asked for help");
  return result;
}

export interface RunOptions {
  readonly openLearner?: OpenLearner;
  /** Wishes the run to end once it says something that matches. */
  readonly stopAt?: RegExp;
  /** Ranks that `openLearner` speaks for. */
  readonly ranks?: number;
}

/** Trains in this process. @returns everything the run said. */
export async function runTraining(
  args: readonly string[],
  { openLearner = openFakeLearner, stopAt, ranks }: RunOptions = {},
): Promise<string> {
  let said = "";
  const stop = { requested: false, listen() {} };
  const console: Console = createConsole({
    terminal: false,
    every: 0,
    print(text) {
      said += text;
      if (stopAt?.test(text)) stop.requested = true;
    },
  });
  await train(await settings(...args), { openLearner, console, stop, ranks });
  return said;
}

/** Weights and moments of a checkpoint, as bytes to compare. */
export async function bits(run: string, step: number): Promise<string> {
  const folder = join(run, "checkpoints", `step-${String(step).padStart(6, "0")}`);
  const hash = createHash("sha256");
  for (const name of ["model.safetensors", "optimizer.safetensors"]) {
    hash.update(await Deno.readFile(join(folder, name)));
  }
  return hash.digest("hex");
}

export async function checkpoints(run: string): Promise<string[]> {
  const names: string[] = [];
  for await (const { name } of Deno.readDir(join(run, "checkpoints"))) names.push(name);
  return names.sort();
}
