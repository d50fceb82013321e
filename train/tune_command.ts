/** The tune command: times the kernels of a configuration's step, and lists what tuning found before. It trains nothing. */
import { type CacheFile, cacheFolder, listCaches, type Winner } from "../kernels/gpu/tune_cache.ts";
import { flag, helpText, parseFlags, wrap } from "../model/arguments.ts";
import { UserError } from "../model/errors.ts";
import { readSettings, type Settings } from "./config.ts";
import type { Console } from "./console.ts";
import { vocabularyOf } from "./dry_run.ts";
import type { OpenLearner } from "./learner.ts";
import { startingPoint } from "./starting_point.ts";

const listing = {
  list: flag("print what was found on this machine instead of tuning"),
  json: flag("with --list: print it as JSON"),
};

const USAGE = `Times the kernels of a training step on the GPU at hand and keeps the fastest for later runs.

  deno task tune [--preset NAME] [--tune full] [--tune-seconds N] [--any-field-of-train value]
  deno task tune --list [--json]

Kernels timed before are left out, but with --tune full. There is no time limit unless --tune-seconds sets one.`;

/** Runs the command. @returns what is left to print. */
export async function tuneCommand(
  args: readonly string[],
  { openLearner, console }: { readonly openLearner: OpenLearner; readonly console: Console },
): Promise<string> {
  if (args.includes("--list") || args.includes("--json")) return list(args);
  const settings = await readSettings(args);
  if ("help" in settings) return helpText(USAGE, listing);
  await tune(settings, openLearner, console);
  return "";
}

async function tune({ config, written }: Settings, openLearner: OpenLearner, console: Console): Promise<void> {
  if (written.tune === "off") throw new UserError("Drop --tune off: wanted cached or full", 2);
  const { model } = await startingPoint(config, await vocabularyOf(config));
  const limits = { tune: config.tune, tuneSeconds: written.tuneSeconds ?? Infinity };
  await using learner = await openLearner({ config: { ...config, ...limits }, model, initialize: false, console });
  console.line(
    `${Object.keys(learner.kernels).length} kinds of calls on ${learner.device}; see \`deno task tune --list\``,
  );
}

function list(args: readonly string[]): string {
  const { values, help } = parseFlags(listing, args);
  if (help) return helpText(USAGE, listing);
  const folder = cacheFolder();
  const caches = listCaches(folder);
  if (values.json) return JSON.stringify(caches, null, 2) + "\n";
  if (caches.length === 0) return `No tuned kernels in ${folder ?? "any cache folder"}: run \`deno task tune\`\n`;
  return caches.map(table).join("\n");
}

const NUMBERS = ["ms", "GFLOP/s", "GB/s", "default's ms", "gain"];

/** Characters of a line. */
const WIDTH = 118;

/** A call's numbers with its description, the kernel that won below it; the slowest first. */
function table({ identity, winners }: CacheFile): string {
  const entries = Object.entries(winners).sort(([, a], [, b]) => b.milliseconds - a.milliseconds);
  const rows = entries.map(([, winner]) => numbers(winner));
  const widths = NUMBERS.map((title, column) => Math.max(title.length, ...rows.map((row) => row[column].length)));
  const line = (cells: readonly string[]) => cells.map((cell, column) => cell.padStart(widths[column])).join("  ");
  const indent = " ".repeat(line(rows[0] ?? NUMBERS).length + 2);
  const described = (text: string) => wrap(text, WIDTH - indent.length);
  const lines = entries.flatMap(([call, { kernel }], i) => {
    const [first, ...rest] = [...described(readable(call)), ...described(`by ${kernel}`)];
    return [`${line(rows[i])}  ${first}`, ...rest.map((text) => indent + text)];
  });
  return [`${identity.name}, Deno ${identity.deno}`, `${line(NUMBERS)}  call`, ...lines, ""].join("\n");
}

function numbers({ milliseconds, defaultMilliseconds, flops, bytes }: Winner): string[] {
  return [
    milliseconds.toFixed(3),
    (flops / milliseconds / 1e6).toFixed(1),
    (bytes / milliseconds / 1e6).toFixed(1),
    defaultMilliseconds.toFixed(3),
    (defaultMilliseconds / milliseconds).toFixed(2),
  ];
}

/** A call's description with its attributes as words. */
function readable(call: string): string {
  return call.replace(/ \{.*\}$/, (json) => {
    const attributes = Object.entries(JSON.parse(json)).filter(([, value]) => value !== false && value !== null);
    const words = attributes.map(([name, value]) => value === true ? name : `${name} ${JSON.stringify(value)}`);
    return words.length === 0 ? "" : `; ${words.join(", ").replaceAll('"', "")}`;
  });
}
