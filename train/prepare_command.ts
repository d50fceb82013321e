/** `deno task prepare`: its flags, its help, and what it prints. It knows nothing of how data is prepared. */
import { choice, flag, helpText, integer, number, parseFlags, text, texts, type Values } from "../model/arguments.ts";
import { UserError } from "../model/errors.ts";
import { writeAllSync } from "../model/files.ts";
import { prepare } from "./prepare.ts";
import { mergeParts } from "./prepare_merge.ts";
import { preparePart } from "./prepare_part.ts";
import type { Part } from "./prepare_pieces.ts";
import { FORMATS } from "./prepare_sources.ts";

const USAGE = `Prepares text for training: tokenizes documents and packs them into rows.

  deno task prepare --input PATH... --tokenizer NAME --context T --out DIR
  deno task prepare ... --shard 2/8 --out DIR, 1/8 to 8/8 on as many machines, and then
  deno task prepare --merge --out DIR`;

const fields = {
  input: texts(
    "files and folders of text (.txt), JSON lines (.jsonl) or Parquet; http(s) URLs; " +
      "hf:owner/dataset[@revision][/config]; sotu, the embedded corpus; several may follow one --input",
  ),
  tokenizer: text("", "gpt2, bytes, or a folder or file with a tokenizer.json"),
  context: integer(0, "tokens that a row trains on", { min: 1 }),
  out: text("", "the folder to write; of an interrupted run, to go on with it"),
  format: choice(["auto", ...FORMATS], "auto", "what the files are; auto goes by their names"),
  column: text("text", "column that holds the text"),
  splitOn: text("file", "text files: file (one document each), blank-line, or a text such as <|endoftext|>"),
  validation: number(0.01, "fraction of documents held out", { min: 0, max: 1 }),
  seed: integer(0, "decides which documents are held out"),
  workers: integer(0, "Workers that tokenize; 0 takes one for each processor"),
  shardTokens: integer(67_108_864, "tokens of a shard", { min: 1 }),
  skipBad: flag("leave out what is corrupt, and count it"),
  shard: text("", "i/n: only part i of n of the input, beside the other parts; --merge joins them"),
  merge: flag("join the parts in --out into data that is the same as if it had been prepared at once"),
  hubUrl: text("", "without it HF_ENDPOINT, or https://huggingface.co; HF_TOKEN opens what is private"),
  json: flag("print the manifest"),
  quiet: flag("print no progress"),
};

/** Runs the command. @throws UserError with exit code 2 where a flag is unknown, missing or malformed. */
export async function prepareCommand(args: readonly string[]): Promise<void> {
  const { values, positionals, help } = parseFlags(fields, args, { positionals: true });
  if (help) return print(helpText(USAGE, fields));
  const { merge, shard = "", input = [], tokenizer, context, out, format, workers, hubUrl, json, ...rest } = values;
  if (merge) return show(await mergeParts({ out: required("out", out), quiet: mergeFlags(values).quiet }), json);
  if (positionals.length > 0 && input.length === 0) {
    throw new UserError(`Unexpected argument ${positionals[0]}: name files after --input`, 2);
  }
  const options = {
    ...rest,
    input: [...input, ...positionals],
    tokenizer: required("tokenizer", tokenizer),
    context: required("context", context),
    out: required("out", out),
    format: format === "auto" ? undefined : format,
    workers: workers || undefined,
    hubUrl: hubUrl || undefined,
  };
  show(shard === "" ? await prepare(options) : await preparePart(options, partOf(shard)), json);
}

/** @throws UserError where anything is given that parts were made with. */
function mergeFlags(values: Partial<Values<typeof fields>>): typeof values {
  const taken = ["merge", "out", "quiet", "json"];
  const count = Object.keys(values).filter((name) => !taken.includes(name)).length;
  if (count === 0) return values;
  throw new UserError("Give --merge with --out, --quiet and --json alone: the parts know what they were made with", 2);
}

function partOf(text: string): Part {
  const [, number, of] = /^(\d+)\/(\d+)$/.exec(text) ?? [];
  const part = { number: Number(number), of: Number(of) };
  if (part.number >= 1 && part.number <= part.of) return part;
  throw new UserError(`--shard: found ${JSON.stringify(text)}, wanted i/n with i from 1 to n, as 2/8`, 2);
}

function required<T>(name: string, value: T | undefined): T {
  if (value !== undefined && value !== "") return value;
  throw new UserError(`Give --${name}; see deno task prepare --help`, 2);
}

function show(manifest: object, json = false): void {
  if (json) print(JSON.stringify(manifest, null, 2) + "\n");
}

function print(text: string): void {
  writeAllSync(Deno.stdout, new TextEncoder().encode(text));
}
