/** `deno task bench NAME [--json]`: runs one bench and prints a table, or one JSON object on the last line. */
import { flag, helpText, parseFlags } from "../model/arguments.ts";
import { UserError } from "../model/errors.ts";
import { reportFailure } from "../model/report.ts";

/** What every bench gives back. A ratio is a peer's time over ours in the same run. */
export interface Bench {
  readonly name: string;
  readonly adapter?: string;
  readonly config: Readonly<Record<string, unknown>>;
  readonly results: readonly {
    readonly case: string;
    readonly repeats_ms: readonly number[];
    readonly median_ms: number;
    readonly mb_per_second?: number;
    readonly tokens_per_second?: number;
    readonly gflops?: number;
    readonly peak_device_bytes?: number;
    readonly ratio?: Readonly<Record<string, number>>;
  }[];
}

const benches: Readonly<Record<string, () => Promise<Bench>>> = {
  tokenizer: async () => await (await import("./tokenizer.ts")).benchTokenizer(),
  step: async () => await (await import("./step.ts")).benchStep(),
};

const fields = { json: flag("print one JSON object on the last line") };
const USAGE = `Runs a bench: ${Object.keys(benches).join(", ")}.

  deno task bench NAME [--json]`;

function row({ case: name, median_ms, ratio = {}, ...rates }: Bench["results"][number]): Record<string, string> {
  const peers = Object.entries(ratio).map(([peer, times]) => `${times.toFixed(2)} times ${peer}`).join(", ");
  const { mb_per_second: mb, tokens_per_second: tokens, gflops, peak_device_bytes: bytes } = rates;
  return {
    case: name,
    "median ms": median_ms.toFixed(1),
    ...mb === undefined ? {} : { "MB/s": mb.toFixed(1) },
    ...tokens === undefined ? {} : { "tokens/s": tokens.toFixed(0) },
    ...gflops === undefined ? {} : { "GFLOP/s": gflops.toFixed(1) },
    ...bytes === undefined ? {} : { "device MB": (bytes / 1e6).toFixed(0) },
    ...peers === "" ? {} : { ratio: peers },
  };
}

async function run(args: readonly string[]): Promise<void> {
  const { values, positionals: [name = ""], help } = parseFlags(fields, args, { positionals: true });
  if (help) return console.log(helpText(USAGE, fields));
  const bench = benches[name];
  if (bench === undefined) {
    throw new UserError(`Name a bench: found ${name || "none"}, wanted ${Object.keys(benches)}`, 2);
  }
  const result = await bench();
  console.log(`${result.name}${result.adapter ? ` on ${result.adapter}` : ""}, Deno ${Deno.version.deno}`);
  console.table(result.results.map(row));
  if (values.json) console.log(JSON.stringify({ ...result, deno: Deno.version.deno }));
}

if (import.meta.main) {
  try {
    await run(Deno.args);
  } catch (error) {
    Deno.exit(reportFailure(error));
  }
}
