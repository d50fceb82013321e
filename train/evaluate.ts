/** The evaluate command: how well a model predicts prepared data, and HellaSwag. It prints and returns what it measured. */
import { join } from "node:path";
import { setImmediate as turn } from "node:timers/promises";
import { choice, defaultsOf, flag, helpText, integer, parseFlags, text } from "../model/arguments.ts";
import { UserError } from "../model/errors.ts";
import { exists } from "../model/files.ts";
import { readJson } from "../model/json_fields.ts";
import { progress } from "../model/progress.ts";
import { modelFolder, newestTrained } from "../model/runs.ts";
import { type WeightFormat, weightFormats } from "../model/scope.ts";
import { loadTokenizer, type Tokenizer } from "../model/tokenizer.ts";
import { parseConfig } from "./config.ts";
import { hellaswag, readQuestions } from "./hellaswag.ts";
import { type Loader, openLoader } from "./loader.ts";
import { type Manifest, readManifest } from "./manifest.ts";
import { corpusFolder } from "./prepared_corpus.ts";
import type { Scorer } from "./scorer.ts";

const fields = {
  model: text("", "a Hugging Face GPT-2 folder, or a run for its latest checkpoint; without it the newest run"),
  data: text("", "a folder made by `deno task prepare`; without it the data the run was trained on"),
  split: choice(["validation", "train"], "validation", "which documents of the data"),
  dtype: choice(weightFormats, "f32", "format of the weights in memory"),
  documents: choice(["separate", "joined"], "separate", "whether attention and positions restart at each document"),
  microBatch: integer(8, "rows computed at once", { min: 1 }),
  batches: integer(0, "microbatches to measure; 0 takes all"),
  hellaswag: text("", "HellaSwag's JSON lines; with it and without --data only this is measured"),
  json: flag("print the result as JSON"),
};

const USAGE = `Measures a model: loss, perplexity and bits per byte on prepared data; HellaSwag.

  deno task evaluate [--model DIR] [--data DIR] [--hellaswag FILE.jsonl] [--json]`;

export type OpenScorer = (
  folder: string,
  batchRows: (context: number) => number,
  dtype?: WeightFormat,
) => Promise<Scorer>;

/** Loss over a split. */
export interface LossResult {
  readonly targets: number;
  /** Mean nats a target. */
  readonly loss: number;
  readonly perplexity: number;
  /** Loss in bits, times the split's tokens (end-of-texts included) over its bytes of text. */
  readonly bitsPerByte: number;
}

/** Runs the command. @returns what to print. */
export async function evaluateCommand(args: readonly string[], openScorer: OpenScorer): Promise<string> {
  const { values, help } = parseFlags(fields, args);
  if (help) return helpText(USAGE, fields);
  const options = { ...defaultsOf(fields), ...values };
  const model = await modelFolder(options.model === "" ? await newestTrained() : options.model);
  const questions = options.hellaswag === "" ? undefined : await readQuestions(options.hellaswag);
  const data = questions !== undefined && options.data === "" ? undefined : options.data || await dataOf(model);
  const manifest = data === undefined ? undefined : await readManifest(data);
  const tokenizer = await loadTokenizer(model);
  if (manifest !== undefined) checkTokenizer(model, tokenizer, data!, manifest);

  const rowsPerBatch = (longest: number) =>
    Math.max(options.microBatch, Math.ceil(longest / (manifest?.context ?? longest)));
  const batchRows = (longest: number) => rowsPerBatch(longest) * (manifest?.context ?? longest);
  await using scorer = await openScorer(model, batchRows, options.dtype);
  const result: Record<string, unknown> = { model, dtype: options.dtype };
  if (manifest !== undefined && data !== undefined) {
    const { split, documents } = options;
    const { context } = manifest;
    checkContext(model, scorer, manifest);
    const rows = scorer.rows / context;
    using loader = await openLoader({ data, split, context, documents, rowsPerBatch: rows, order: "sequential" });
    Object.assign(result, { data, split, ...await measureLoss(scorer, loader, options.batches) });
  }
  if (questions !== undefined) {
    const bar = progress({ label: "HellaSwag", total: questions.length, unit: "questions" });
    const scores = await hellaswag(questions, tokenizer, scorer, (done, { accuracyNormalized }) => {
      bar.update(done, `${percent(accuracyNormalized)} right`);
    });
    bar.finish();
    result.hellaswag = scores;
  }
  return options.json ? JSON.stringify(result) + "\n" : describe(result);
}

/** Mean loss over a split's rows in order, and what follows from it. */
async function measureLoss(scorer: Scorer, loader: Loader, batches = 0): Promise<LossResult> {
  const count = batches === 0 ? loader.batchesPerEpoch : Math.min(batches, loader.batchesPerEpoch);
  const bar = progress({ label: "loss", total: count, unit: "batches" });
  let [sum, targets] = [0, 0];
  for (let index = 0; index < count; index++) {
    const batch = await loader.batch(index);
    const losses = await scorer.losses(batch);
    batch.targets.forEach((target, row) => sum += target < 0 ? 0 : losses[row]);
    targets += batch.validTargets;
    bar.update(index + 1, `loss ${(sum / targets).toFixed(4)}`);
    await turn();
  }
  bar.finish();
  const loss = sum / targets;
  const bitsPerByte = loss / Math.LN2 * loader.splitTokens / loader.textBytes;
  return { targets, loss, perplexity: Math.exp(loss), bitsPerByte };
}

/** The data that a checkpoint of a run was trained on. */
async function dataOf(checkpoint: string): Promise<string> {
  const file = join(checkpoint, "trainer_state.json");
  if (!await exists(file)) {
    throw new UserError(`Give --data or --hellaswag: ${checkpoint} doesn't say what it was trained on`, 2);
  }
  const config = parseConfig((await readJson(file) as { config?: unknown } | null)?.config, file);
  return config.data === "" ? await corpusFolder(config) : config.data;
}

function checkTokenizer(model: string, tokenizer: Tokenizer, data: string, manifest: Manifest): void {
  if (tokenizer.hash === manifest.tokenizer.hash) return;
  throw new UserError(`Cannot evaluate ${model} on ${data}: it was prepared with another tokenizer than the model's`);
}

function checkContext(model: string, scorer: Scorer, { context }: Manifest): void {
  if (context <= scorer.contextLength) return;
  const wanted = `its context is ${scorer.contextLength}, the data's rows have ${context} tokens`;
  throw new UserError(`Cannot evaluate ${model}: ${wanted}; prepare the data with --context ${scorer.contextLength}`);
}

function describe(result: Record<string, unknown>): string {
  const { model, data, split, targets, loss, perplexity, bitsPerByte, hellaswag } = result as
    & {
      model: string;
      data?: string;
      split?: string;
      hellaswag?: Awaited<ReturnType<typeof import("./hellaswag.ts").hellaswag>>;
    }
    & Partial<LossResult>;
  const lines = [`model        ${model}`];
  if (loss !== undefined) {
    lines.push(
      `data         ${data}, ${split}, ${targets!.toLocaleString("en-US")} targets`,
      `loss         ${loss.toFixed(4)} nats a token`,
      `perplexity   ${perplexity!.toFixed(3)}`,
      `bits a byte  ${bitsPerByte!.toFixed(4)}`,
    );
  }
  if (hellaswag !== undefined) {
    const { questions, accuracy, accuracyNormalized } = hellaswag;
    lines.push(
      `HellaSwag    ${percent(accuracyNormalized)} (acc_norm), ${percent(accuracy)} (acc) of ${questions} questions`,
    );
  }
  return lines.join("\n") + "\n";
}

function percent(share: number): string {
  return `${(100 * share).toFixed(2)}%`;
}
