/** The tune command: times the kernels of a configuration's step, and lists what tuning found before. It trains nothing. */
import { type CacheFile, cacheFolder, listCaches, type Winner } from "../kernels/gpu/tune_cache.ts";
import { flag, helpText, parseFlags } from "../model/arguments.ts";
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

function table({ identity, winners }: CacheFile): string {
  const rows = Object.entries(winners).sort(([, a], [, b]) => b.milliseconds - a.milliseconds).map(row);
  const lines = [["ms", "GFLOP/s", "GB/s", "default's ms", "gain", "kernel", "call"], ...rows];
  const widths = lines[0].map((_, column) => Math.max(...lines.map((line) => line[column].length)));
  const numbers = 5;
  const text = lines.map((line) =>
    line.map((cell, column) => column < numbers ? cell.padStart(widths[column]) : cell.padEnd(widths[column]))
      .join("  ").trimEnd()
  );
  return `${identity.name}, Deno ${identity.deno}\n${text.join("\n")}\n`;
}

function row([call, { kernel, milliseconds, defaultMilliseconds, flops, bytes }]: [string, Winner]): string[] {
  return [
    milliseconds.toFixed(3),
    (flops / milliseconds / 1e6).toFixed(1),
    (bytes / milliseconds / 1e6).toFixed(1),
    defaultMilliseconds.toFixed(3),
    (defaultMilliseconds / milliseconds).toFixed(2),
    kernel,
    call,
  ];
}
