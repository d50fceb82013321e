/** Samples while training: streamed to the console and kept in the run's samples.txt. It knows no optimizer. */
import { join } from "node:path";
import { explainIo, writeAll, writeAtomically } from "../model/files.ts";
import { defaultSampling, type Engine } from "../model/generate.ts";
import type { Tokenizer } from "../model/tokenizer.ts";
import type { Config } from "./config.ts";
import { type Console, printable } from "./console.ts";

const TEMPERATURE = 0.8;
const TOP_K = 50;
const HEADING = /^=== step (\d+) ===$/;

export interface SampleOptions {
  readonly config: Config;
  readonly tokenizer: Tokenizer;
  readonly step: number;
  readonly console: Console;
  /** Ends the sample early where it turns true. */
  readonly stop: { readonly requested: boolean };
}

/** Generates one sample, shows it as it comes, and appends it to samples.txt. */
export async function sample(engine: Engine, run: string, options: SampleOptions): Promise<void> {
  const { config, tokenizer, step, console, stop } = options;
  const start = tokenizer.endOfText === undefined ? [] : [tokenizer.endOfText];
  const room = engine.contextLength - Math.min(config.sampleTokens, Math.floor(engine.contextLength / 2));
  const prompt = [...start, ...tokenizer.encode(config.samplePrompt)].slice(-room);
  const settings = {
    ...defaultSampling,
    maxTokens: config.sampleTokens,
    temperature: TEMPERATURE,
    topK: TOP_K,
    seed: config.seed + step,
    stopTokens: start,
  };
  const decoder = tokenizer.decoder();
  let text = config.samplePrompt;
  console.write(`sample: ${text}`);
  const show = (piece: string) => {
    text += piece;
    console.write(printable(piece));
  };
  for await (const { token } of engine.generate(Uint32Array.from(prompt), settings)) {
    if (token !== tokenizer.endOfText) show(decoder.push(token));
    if (stop.requested) break;
  }
  show(decoder.flush());
  console.write("\n");
  const path = join(run, "samples.txt");
  await Deno.writeTextFile(path, `=== step ${step} ===\n${text}\n\n`, { append: true }).catch((error) => {
    throw explainIo("write", path, error);
  });
}

/** Cuts the samples of updates after `step`, which a resumed run makes again. */
export async function cutSamples(run: string, step: number): Promise<void> {
  const path = join(run, "samples.txt");
  const text = await Deno.readTextFile(path).catch((error) => {
    if (error instanceof Deno.errors.NotFound) return "";
    throw explainIo("read", path, error);
  });
  const lines = text.split("\n");
  const end = lines.findIndex((line) => Number(HEADING.exec(line)?.[1]) > step);
  if (end < 0) return;
  const kept = lines.slice(0, end).map((line) => `${line}\n`).join("");
  await writeAtomically(path, (file) => writeAll(file, new TextEncoder().encode(kept)));
}
