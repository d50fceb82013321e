/** `deno task bench NAME`: runs one bench and prints a table, with --json also one JSON object on the last line. */
import { choice, defaultsOf, flag, helpText, integer, number, parseFlags, text } from "../model/arguments.ts";
import { UserError } from "../model/errors.ts";
import { reportFailure } from "../model/report.ts";
import type { Bench, BenchOptions } from "./harness.ts";
import { formatBench } from "./table.ts";

export type { Bench } from "./harness.ts";

const benches: Readonly<Record<string, (options: BenchOptions) => Promise<Bench>>> = {
  matmul: async (options) => await (await import("./matmul.ts")).benchMatmul(options),
  attention: async (options) => await (await import("./attention.ts")).benchAttention(options),
  step: async (options) => await (await import("./step.ts")).benchStep(options),
  decode: async (options) => await (await import("./decode.ts")).benchDecode(options),
  serve: async (options) => await (await import("./serve.ts")).benchServe(options),
  soak: async (options) => await (await import("./soak.ts")).benchSoak(options),
  tokenizer: async (options) => await (await import("./tokenizer.ts")).benchTokenizer(options),
  allreduce: async (options) => await (await import("./allreduce.ts")).benchAllreduce(options),
  scaling: async (options) => await (await import("./scaling.ts")).benchScaling(options),
  prepare: async (options) => await (await import("./prepare.ts")).benchPrepare(options),
  peers: async (options) => await (await import("./peers.ts")).benchPeers(options),
};

const fields = {
  case: text("", "measure this case alone, or all whose name holds the text"),
  repeats: integer(0, "repeats that count, after the warm-up; soak: minutes; 0: the bench's own number", {
    min: 0,
    max: 1000,
  }),
  tune: choice(["off", "cached", "full"], "cached", "time kernels before measuring: new ones, or all again"),
  tuneSeconds: number(30, "time for a case's new kernels"),
  profile: flag("step: print where the time of a step goes, kernel by kernel"),
  alone: flag("leave PyTorch out of step, where it is installed"),
  json: flag("print one JSON object on the last line"),
};

const NAMES = Object.keys(benches).join(", ");
const USAGE = `Runs a bench: ${NAMES}.

  deno task bench NAME [--case TEXT] [--json]

peers measures wgpt against jax-js, TensorFlow.js, ONNX Runtime Web and PyTorch; its first run downloads the first three
from npm.`;

/** The object that --json prints: a bench with what ran it; what failed stands in its config. */
export function toJson({ failed = [], notes: _, config, results, ...rest }: Bench): Record<string, unknown> {
  return {
    ...rest,
    deno: Deno.version.deno,
    config: failed.length > 0 ? { ...config, failed } : config,
    results,
  };
}

async function run(args: readonly string[]): Promise<void> {
  const { values, positionals: [name = "", ...more], help } = parseFlags(fields, args, { positionals: true });
  if (help) return console.log(helpText(USAGE, fields));
  const bench = Object.hasOwn(benches, name) ? benches[name] : undefined;
  if (bench === undefined || more.length > 0) {
    throw new UserError(`Name one bench: found ${[name, ...more].join(" ") || "none"}, wanted ${NAMES}`, 2);
  }
  const { tune, tuneSeconds } = { ...defaultsOf(fields), ...values };
  const result = await bench({
    case: values.case ?? "",
    tune,
    tuneSeconds,
    repeats: values.repeats || undefined,
    peers: !values.alone,
    profile: values.profile ?? false,
    progress: (line) => console.error(`${name}: ${line}`),
  });
  console.log(formatBench(result));
  if (values.json) console.log(JSON.stringify(toJson(result)));
}

if (import.meta.main) {
  try {
    await run(Deno.args);
  } catch (error) {
    Deno.exit(reportFailure(error));
  }
}
