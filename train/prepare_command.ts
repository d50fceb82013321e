/** `deno task prepare`: its flags, its help, and what it prints. It knows nothing of how data is prepared. */
import { parseArgs } from "node:util";
import { UserError } from "../model/errors.ts";
import { prepare, type PrepareOptions } from "./prepare.ts";
import { type Format, FORMATS } from "./prepare_sources.ts";

const HELP = `Prepares text for training: tokenizes documents and packs them into rows.

deno task prepare --input PATH... --tokenizer NAME --context T --out DIR

  --input PATH...      files and folders of text (.txt), JSON lines (.jsonl) or Parquet; http(s) URLs;
                       hf:owner/dataset[@revision][/config]; sotu, the embedded corpus
  --tokenizer NAME     gpt2, bytes, or a folder or file with a tokenizer.json
  --context T          tokens that a row trains on
  --out DIR            the folder to write; of an interrupted run, to go on with it
  --format FORMAT      text, jsonl or parquet, where names don't say it
  --column NAME        column that holds the text (default: text)
  --split-on WHAT      text files: file (one document each, the default), blank-line, or a text such as "<|endoftext|>"
  --validation PART    fraction of documents held out (default: 0.01)
  --seed N             decides which (default: 0)
  --workers N          default: one for each processor
  --shard-tokens N     tokens of a shard (default: 67108864)
  --skip-bad           leave out what is corrupt, and count it
  --hub-url URL        default: HF_ENDPOINT, or https://huggingface.co; HF_TOKEN opens what is private
  --json               print the manifest
  --quiet              print no progress
  --help
`;

const OPTIONS = {
  input: { type: "string", multiple: true },
  tokenizer: { type: "string" },
  context: { type: "string" },
  out: { type: "string" },
  format: { type: "string" },
  column: { type: "string" },
  "split-on": { type: "string" },
  validation: { type: "string" },
  seed: { type: "string" },
  workers: { type: "string" },
  "shard-tokens": { type: "string" },
  "skip-bad": { type: "boolean" },
  "hub-url": { type: "string" },
  json: { type: "boolean" },
  quiet: { type: "boolean" },
  help: { type: "boolean" },
} as const;

/** Runs the command. @throws UserError with exit code 2 where a flag is unknown, missing or malformed. */
export async function prepareCommand(args: string[]): Promise<void> {
  const { values, positionals } = parse(args);
  if (values.help) return print(HELP);
  const options: PrepareOptions = {
    input: [...values.input ?? [], ...positionals],
    tokenizer: required("tokenizer", values.tokenizer),
    context: number("context", required("context", values.context))!,
    out: required("out", values.out),
    format: format(values.format),
    column: values.column,
    splitOn: values["split-on"],
    validation: number("validation", values.validation),
    seed: number("seed", values.seed),
    workers: number("workers", values.workers),
    shardTokens: number("shard-tokens", values["shard-tokens"]),
    skipBad: values["skip-bad"],
    hubUrl: values["hub-url"],
    quiet: values.quiet,
  };
  const manifest = await prepare(options);
  if (values.json) print(JSON.stringify(manifest, null, 2) + "\n");
}

function parse(args: string[]) {
  try {
    const parsed = parseArgs({ args, options: OPTIONS, allowPositionals: true, strict: true });
    if (parsed.positionals.length === 0 || parsed.values.input) return parsed;
    throw new Error(`Unexpected argument '${parsed.positionals[0]}': name files after --input`);
  } catch (error) {
    const [line] = (error as Error).message.split(/\.\s|\n/);
    throw new UserError(`${line}; see deno task prepare --help`, 2);
  }
}

function required(name: string, value: string | undefined): string {
  if (value !== undefined && value !== "") return value;
  throw new UserError(`Give --${name}; see deno task prepare --help`, 2);
}

function number(name: string, value: string | undefined): number | undefined {
  if (value === undefined) return undefined;
  if (/^\d+(\.\d+)?([eE][+-]?\d+)?$|^\.\d+$/.test(value)) return Number(value);
  throw new UserError(`Cannot use --${name} ${value}: wanted a number`, 2);
}

function format(value: string | undefined): Format | undefined {
  const found = FORMATS.find((each) => each === value);
  if (value === undefined || found) return found;
  throw new UserError(`Cannot use --format ${value}: wanted ${FORMATS.join(", ")}`, 2);
}

function print(text: string): void {
  const bytes = new TextEncoder().encode(text);
  for (let done = 0; done < bytes.length;) done += Deno.stdout.writeSync(bytes.subarray(done));
}
