/** How fast text becomes shards, with the start of tokenizer and Workers and without. It knows no adapter. */
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { prepare } from "../train/prepare.ts";
import { alternate, type Bench, type BenchOptions, contender, resultOf, select } from "./harness.ts";
import { addressFiles } from "./texts.ts";

const REPEATS = 3;
const CONTEXT = 1024;

interface Case {
  readonly name: string;
  readonly workers: number;
  readonly lines: boolean;
}

const WORKERS = [...new Set([1, availableParallelism()])];

const CASES: readonly Case[] = [false, true].flatMap((lines) =>
  WORKERS.map((workers) => ({
    name: `${lines ? "JSON lines" : "files of text"}, ${workers} ${workers === 1 ? "Worker" : "Workers"}`,
    workers,
    lines,
  }))
);

/** Preparing `input`, each time into a new folder. */
function preparing(name: string, input: string, workers: number, folder: string) {
  let count = 0;
  return contender(name, () => {
    const out = join(folder, `${name} ${count++}`);
    return prepare({ input: [input], tokenizer: "gpt2", context: CONTEXT, workers, out, quiet: true });
  });
}

async function writeInputs(folder: string): Promise<{ text: string; lines: string; word: string; bytes: number }> {
  const [text, lines, word] = ["text", "lines.jsonl", "word.txt"].map((name) => join(folder, name));
  await Deno.mkdir(text);
  const addresses = addressFiles();
  for (const [i, address] of addresses.entries()) await Deno.writeTextFile(join(text, `${i}.txt`), address);
  await Deno.writeTextFile(lines, addresses.map((address) => JSON.stringify({ text: address })).join("\n"));
  await Deno.writeTextFile(word, "word");
  return { text, lines, word, bytes: new TextEncoder().encode(addresses.join("")).length };
}

/**
 * The State of the Union addresses (10.7 MB), GPT-2's tokenizer. "From start to end" is a whole call; "without the start"
 * takes off what preparing one word takes, measured in turn.
 */
export async function benchPrepare(options: BenchOptions): Promise<Bench> {
  const repeats = options.repeats ?? REPEATS;
  const folder = await Deno.makeTempDir({ prefix: "wgpt-bench-" });
  try {
    const { text, lines, word, bytes } = await writeInputs(folder);
    const results: Bench["results"][number][] = [];
    for (const shape of select(CASES, options.case)) {
      options.progress(shape.name);
      const whole = preparing(`whole ${shape.name}`, shape.lines ? lines : text, shape.workers, folder);
      const start = preparing(`start ${shape.name}`, word, shape.workers, folder);
      const [all, starts] = await alternate([whole, start], repeats);
      const rest = all.map((ms, i) => ms - starts[i]);
      results.push(
        resultOf(`${shape.name}, from start to end`, all, { bytes }),
        resultOf(`${shape.name}, without the start`, rest, { bytes }),
      );
    }
    const config = { repeats, tokenizer: "gpt2", context: CONTEXT, megabytes: Math.round(bytes / 1e5) / 10 };
    return { name: "prepare", config, results };
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}
