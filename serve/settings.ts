/** Everything a server can be told: one table, from which flags, config file, environment, help and checks come. It reads no process. */
import {
  checkObject,
  choice,
  defaultsOf,
  flag,
  helpText,
  integer,
  number,
  parseFlags,
  type Table,
  text,
  texts,
  type Values,
} from "../model/arguments.ts";
import { UserError } from "../model/errors.ts";
import { readJson } from "../model/json_fields.ts";
import { weightFormats } from "../model/scope.ts";
import type { EngineOptions } from "./engine.ts";
import { logFormats, logLevels } from "./log.ts";
import type { OperationOptions } from "./operation.ts";

const seconds = { min: 0.001 };

export const fields = {
  config: text("", "JSON file with any of these settings; flags come first, then the environment, then the file"),
  model: texts(
    "model folder, or NAME=DIR to serve it under another name; may repeat; by default the newest run under runs/",
  ),
  lazy: flag("open models when they are first asked for, not at the start"),
  dtype: choice(weightFormats, "f32", "format of the weights in memory"),
  chatTemplate: text(
    "",
    "Jinja file that writes conversations as the models want them, or chatml; by default their own",
  ),

  host: text("127.0.0.1", "address to listen on; 0.0.0.0 lets other machines in, which takes an API key"),
  port: integer(8000, "port to listen on; 0 takes a free one", { min: 0, max: 65535 }),
  apiKey: texts("key that requests must carry; may repeat. Others see command lines: prefer a file or WGPT_API_KEY"),
  apiKeyFile: text("", "file with a key a line"),
  auth: { ...flag("without keys, let other machines in all the same"), default: true },
  corsOrigin: texts("origin whose pages may ask, or *; may repeat"),
  rateLimit: integer(0, "requests a minute for each key, or each address without keys; 0 sets no limit"),

  adapters: text(
    "",
    "adapters, each with an engine: names or numbers of `deno task adapters` by comma, or all; every GPU if empty",
  ),
  kvMemory: text(
    "",
    "memory for keys and values of each model, as 512M or 2G; by default a context a sequence, up to 512M",
  ),
  maxSequences: integer(0, "texts of a model that are generated at once; 0 for 64", { min: 0, max: 1024 }),
  maxBatchedTokens: integer(0, "rows of one step: how long a prompt may hold up others; 0 lets the adapter decide"),
  batchInvariant: flag("the same bits for a request in any company; steps with few rows take as long as full ones"),
  maxQueue: integer(256, "texts that may wait for each model; more get 429"),

  maxBody: text("4M", "largest request body"),
  bodySeconds: number(30, "bodies that take longer get 408", seconds),
  requestSeconds: number(600, "answers that take longer are ended", seconds),
  pingSeconds: number(15, "silence in a stream after which a comment is sent", seconds),
  drainSeconds: number(30, "what answers under way are given when the server is told to end"),

  logLevel: choice(logLevels, "info", "what is written to standard error"),
  logFormat: choice(logFormats, "text", "form of its lines"),
  logPrompts: flag("write prompts there too"),
} satisfies Table;

export type Settings = Values<typeof fields>;

/** Environment variables are named WGPT_ and the setting in capitals: WGPT_API_KEY. */
const PREFIX = "WGPT_";

/**
 * Reads the settings: flags before environment before config file before defaults.
 *
 * @param variable reads an environment variable. Lists in it are separated by commas.
 * @returns undefined where only help was wanted.
 * @throws UserError with exit code 2 for what is unknown, malformed, or lets strangers in.
 */
export async function readSettings(
  args: readonly string[],
  variable: (name: string) => string | undefined,
): Promise<Settings | undefined> {
  const { values: flags, help } = parseFlags(fields, args);
  if (help) return undefined;
  const environment = readEnvironment(variable);
  const file = flags.config ?? environment.config;
  const fromFile = file ? checkObject(fields, await readJson(file), file) : {};
  const settings = { ...defaultsOf(fields), ...fromFile, ...environment, ...flags };
  const apiKey = [...settings.apiKey, ...settings.apiKeyFile ? await readKeys(settings.apiKeyFile) : []];
  if (apiKey.some((key) => !/^\S+$/.test(key))) throw new UserError("Give API keys without spaces, none empty", 2);
  const checked = { ...settings, apiKey };
  refuseStrangers(checked);
  return checked;
}

function readEnvironment(variable: (name: string) => string | undefined): Partial<Settings> {
  const args = Object.entries(fields).flatMap(([name, { kind }]) => {
    const words = name.replace(/[A-Z]/g, (letter) => `_${letter}`);
    const value = variable(PREFIX + words.toUpperCase());
    if (value === undefined || value === "") return [];
    const option = words.replaceAll("_", "-").toLowerCase();
    if (kind === "flag") return [/^(0|false|no|off)$/i.test(value) ? `--no-${option}` : `--${option}`];
    return (kind === "texts" ? value.split(",") : [value]).map((one) => `--${option}=${one.trim()}`);
  });
  try {
    return parseFlags(fields, args).values;
  } catch (error) {
    if (error instanceof UserError) throw new UserError(`In the environment, ${PREFIX}…: ${error.message}`, 2);
    throw error;
  }
}

async function readKeys(file: string): Promise<string[]> {
  const content = await Deno.readTextFile(file).catch((error) => {
    throw new UserError(`Cannot read API keys from ${file}: ${error.message}`, 2);
  });
  const keys = content.split("\n").map((line) => line.trim()).filter((line) => line !== "" && !line.startsWith("#"));
  if (keys.length === 0) throw new UserError(`Cannot read API keys from ${file}: it holds none`, 2);
  return keys;
}

const isLoopback = (host: string) => host === "localhost" || host === "::1" || /^127(\.\d{1,3}){3}$/.test(host);

function refuseStrangers({ host, apiKey, auth }: Settings): void {
  if (apiKey.length > 0 || !auth || isLoopback(host)) return;
  throw new UserError(
    `Give --api-key-file FILE or WGPT_API_KEY, or say --no-auth: --host ${host} lets other machines in`,
    2,
  );
}

export function settingsHelp(usage: string): string {
  const note = "Each setting can also stand in the environment, as WGPT_MAX_QUEUE=64.";
  return helpText(`${usage}\n\n${note}`, fields);
}

/** What differs from the defaults, on one line; of keys only how many. */
export function describeSettings(settings: Settings): string {
  const standard: Readonly<Record<string, unknown>> = defaultsOf(fields);
  const words = Object.entries(settings).flatMap(([name, value]) => {
    if (JSON.stringify(value) === JSON.stringify(standard[name])) return [];
    return [`${name} ${name === "apiKey" ? `(${settings.apiKey.length} of them)` : [value].flat().join(", ")}`];
  });
  return words.length === 0 ? "Settings: the defaults" : `Settings: ${words.join("; ")}`;
}

/** Bytes, from a number with or without K, M or G (powers of 1,024). */
export function parseBytes(value: string, name: string): number {
  const found = /^(\d+(?:\.\d+)?)\s*([KMG]?)(?:i?B)?$/i.exec(value.trim());
  const bytes = found ? Math.floor(Number(found[1]) * 1024 ** " KMG".indexOf(found[2].toUpperCase() || " ")) : 0;
  if (bytes >= 1) return bytes;
  throw new UserError(`--${name}: found ${JSON.stringify(value)}, wanted bytes, as 512M or 2G`, 2);
}

export function operationOf(settings: Settings): OperationOptions {
  const { maxQueue, bodySeconds, requestSeconds, pingSeconds, logPrompts } = settings;
  return {
    apiKeys: settings.apiKey,
    corsOrigins: settings.corsOrigin,
    rateLimit: settings.rateLimit || undefined,
    maxBodyBytes: parseBytes(settings.maxBody, "max-body"),
    maxQueue,
    bodySeconds,
    requestSeconds,
    pingSeconds,
    logPrompts,
  };
}

export function engineOf({ kvMemory, maxSequences, maxBatchedTokens, batchInvariant }: Settings): EngineOptions {
  if (maxBatchedTokens > 0 && maxBatchedTokens < maxSequences) {
    throw new UserError(
      `Raise --max-batched-tokens: ${maxSequences} texts at once need as many rows, found ${maxBatchedTokens}`,
      2,
    );
  }
  return {
    kvMemory: kvMemory === "" ? undefined : parseBytes(kvMemory, "kv-memory"),
    maxSequences: maxSequences || undefined,
    maxBatchedTokens: maxBatchedTokens || undefined,
    batchInvariant,
  };
}
