/**
 * Command-line flags and config files read by one table of fields. It knows no particular command. The parsing itself is
 * node:util's parseArgs, called in one place, so that another parser of that shape could take over.
 */
import { parseArgs } from "node:util";
import { UserError } from "./errors.ts";

type Kind = "text" | "texts" | "integer" | "number" | "flag" | "choice";

/** One setting: how it is written, what it is when nobody writes it, and what it means. */
export interface Field<T> {
  readonly kind: Kind;
  readonly default: T;
  readonly help: string;
  /** Smallest and largest number allowed. */
  readonly min?: number;
  readonly max?: number;
  readonly choices?: readonly string[];
}

// deno-lint-ignore no-explicit-any -- a table holds fields of all types
export type Table = Readonly<Record<string, Field<any>>>;
export type Values<T extends Table> = { readonly [K in keyof T]: T[K] extends Field<infer V> ? V : never };

interface Range {
  readonly min?: number;
  readonly max?: number;
}

export const text = (value: string, help: string): Field<string> => ({ kind: "text", default: value, help });
/** May be given several times. */
export const texts = (help: string): Field<readonly string[]> => ({ kind: "texts", default: [], help });
export const flag = (help: string): Field<boolean> => ({ kind: "flag", default: false, help });
export const integer = (value: number, help: string, range: Range = { min: 0 }): Field<number> => ({
  kind: "integer",
  default: value,
  help,
  ...range,
});
export const number = (value: number, help: string, range: Range = { min: 0 }): Field<number> => ({
  kind: "number",
  default: value,
  help,
  ...range,
});
export const choice = <const T extends string>(choices: readonly T[], value: T, help: string): Field<T> => ({
  kind: "choice",
  default: value,
  help,
  choices,
});

/** What each field is when nobody writes it. */
export function defaultsOf<T extends Table>(table: T): Values<T> {
  return Object.fromEntries(Object.entries(table).map(([name, field]) => [name, field.default])) as Values<T>;
}

/** What was found on a command line: only what was given, checked. */
export interface Parsed<T extends Table> {
  readonly values: Partial<Values<T>>;
  readonly positionals: readonly string[];
  /** --help or -h was given. */
  readonly help: boolean;
}

/**
 * Reads flags named like the table's fields, in kebab-case: `--name value`, `--name=value`; for flags `--name` and
 * `--no-name`. The last of several counts; `texts` collects all.
 *
 * @throws UserError with exit code 2 for an unknown or malformed flag, or, unless `positionals` is true, a stray word.
 */
export function parseFlags<T extends Table>(
  table: T,
  args: readonly string[],
  options: { readonly positionals?: boolean } = {},
): Parsed<T> {
  const names = new Map(Object.keys(table).map((name) => [kebab(name), name]));
  const types = [...names].map(([flag, name]) =>
    [flag, { type: table[name].kind === "flag" ? "boolean" : "string" }] as const
  );
  const { tokens } = parseArgs({
    args: [...args],
    options: Object.fromEntries([...types, ["help", { type: "boolean", short: "h" }]]),
    strict: false,
    allowPositionals: true,
    tokens: true,
  });
  const values: Record<string, unknown> = {};
  const positionals: string[] = [];
  let help = false;
  for (const token of tokens) {
    if (token.kind === "positional") positionals.push(token.value);
    if (token.kind !== "option") continue;
    if (token.name === "help") help = true;
    else Object.assign(values, readFlag(table, names, token, values));
  }
  if (!options.positionals && positionals.length > 0 && !help) {
    throw new UserError(
      `Give values with their flags: found ${quote(positionals[0])} on its own; --help lists the flags`,
      2,
    );
  }
  return { values: values as Partial<Values<T>>, positionals, help };
}

interface OptionToken {
  readonly name: string;
  readonly rawName: string;
  readonly value?: string;
  readonly inlineValue?: boolean;
}

function readFlag(
  table: Table,
  names: ReadonlyMap<string, string>,
  { name: given, rawName, value, inlineValue }: OptionToken,
  before: Readonly<Record<string, unknown>>,
): Record<string, unknown> {
  const positive = given.replace(/^no-/, "");
  const negated = !names.has(given) && names.has(positive) && table[names.get(positive)!].kind === "flag";
  const name = names.get(negated ? positive : given);
  if (name === undefined) {
    const known = closest(given, [...names.keys(), "help"]);
    throw new UserError(
      `Unknown flag ${rawName}${known ? `: did you mean --${known}?` : "; --help lists the flags"}`,
      2,
    );
  }
  const field = table[name];
  if (field.kind === "flag") {
    if (value !== undefined) throw new UserError(`${rawName} takes no value: found ${quote(value)}`, 2);
    return { [name]: !negated };
  }
  const missing = value === undefined || (!inlineValue && /^--?[a-z]/i.test(value));
  if (missing) throw new UserError(`${rawName} needs a value: ${wanted(field)}`, 2);
  const checked = checkValue(field, readText(field, value), rawName);
  return { [name]: field.kind === "texts" ? [...(before[name] as string[] ?? []), ...(checked as string[])] : checked };
}

/** A text from the command line as the type its field has, or as it is where it can't be. */
function readText(field: Field<unknown>, value: string): unknown {
  if (field.kind === "texts") return [value];
  if (field.kind !== "integer" && field.kind !== "number") return value;
  return /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(value) ? Number(value) : value;
}

/**
 * Checks the parsed content of a JSON config file: an object whose keys are names of fields, as the table or the command line
 * spells them. `file` is what errors call it.
 *
 * @throws UserError with exit code 2 for an unknown key or a value that its field doesn't allow.
 */
export function checkObject<T extends Table>(table: T, json: unknown, file: string): Partial<Values<T>> {
  if (typeof json !== "object" || json === null || Array.isArray(json)) {
    throw new UserError(`Cannot use ${file}: it holds no JSON object`, 2);
  }
  const names = new Map(Object.keys(table).flatMap((name) => [[name, name], [kebab(name), name]]));
  const values = Object.entries(json).map(([key, value]) => {
    const name = names.get(key);
    if (name === undefined) {
      const known = closest(key, Object.keys(table));
      throw new UserError(
        `Cannot use ${file}: unknown field ${quote(key)}${known ? `: did you mean ${known}?` : ""}`,
        2,
      );
    }
    return [name, checkValue(table[name], value, `${file}: ${key}`)];
  });
  return Object.fromEntries(values);
}

function checkValue(field: Field<unknown>, value: unknown, label: string): unknown {
  const { kind, choices, min = -Infinity, max = Infinity } = field;
  const inRange = (value: number) => value >= min && value <= max;
  const right = {
    text: () => typeof value === "string",
    texts: () => Array.isArray(value) && value.every((entry) => typeof entry === "string"),
    integer: () => Number.isSafeInteger(value) && inRange(value as number),
    number: () => Number.isFinite(value) && inRange(value as number),
    flag: () => typeof value === "boolean",
    choice: () => choices!.includes(value as string),
  }[kind]();
  if (right) return value;
  const near = kind === "choice" && typeof value === "string" ? closest(value, choices!) : undefined;
  const hint = near ? `; did you mean ${near}?` : "";
  throw new UserError(
    `${label}: found ${typeof value === "string" ? quote(value) : JSON.stringify(value)}, wanted ${
      wanted(field)
    }${hint}`,
    2,
  );
}

function wanted({ kind, choices, min, max }: Field<unknown>): string {
  if (kind === "choice") return choices!.join(", ").replace(/, ([^,]*)$/, " or $1");
  const range = (min === undefined ? "" : ` from ${min}`) + (max === undefined ? "" : ` to ${max}`);
  return {
    text: "a text",
    texts: "a text",
    integer: `a whole number${range}`,
    number: `a number${range}`,
    flag: "true or false",
  }[kind];
}

/** The help page: usage, then a line or more for each field. */
export function helpText(usage: string, table: Table): string {
  const rows = Object.entries(table).map(([name, field]) => {
    const value = field.kind === "flag" ? "" : ` ${valueName(field)}`;
    const option = field.kind === "flag" && field.default ? `--no-${kebab(name)}` : `--${kebab(name)}`;
    return [`${option}${value}`, field.help + defaultNote(field)];
  });
  rows.push(["--help", "print this and end"]);
  const width = Math.min(30, Math.max(...rows.map(([flag]) => flag.length)));
  const lines = rows.flatMap(([flag, help]) => {
    const [first, ...rest] = wrap(help, 100 - width - 4);
    const head = flag.length > width
      ? [`  ${flag}`, `  ${" ".repeat(width)}  ${first}`]
      : [`  ${flag.padEnd(width)}  ${first}`];
    return [...head, ...rest.map((line) => `  ${" ".repeat(width)}  ${line}`)];
  });
  return `${usage.trim()}\n\n${lines.join("\n")}\n`;
}

/** What stands for a field's value on the help page. */
function valueName({ kind, choices }: Field<unknown>): string {
  if (kind === "choice" && choices!.join("|").length <= 24) return choices!.join("|");
  return { text: "TEXT", texts: "TEXT", integer: "N", number: "X", flag: "", choice: "NAME" }[kind];
}

function defaultNote({ kind, default: value, choices }: Field<unknown>): string {
  const listed = kind === "choice" && choices!.join("|").length > 24 ? `: ${choices!.join(", ")}` : "";
  if (kind === "flag" || kind === "texts" || value === "") return listed;
  return `${listed} [${value}]`;
}

/** The words of a text in lines of at most `width`, where words allow. */
export function wrap(text: string, width: number): string[] {
  const lines = [""];
  for (const word of text.split(" ")) {
    const line = lines[lines.length - 1];
    if (line !== "" && line.length + 1 + word.length > width) lines.push(word);
    else lines[lines.length - 1] = line === "" ? word : `${line} ${word}`;
  }
  return lines;
}

/** A text as one word of a shell's command line. */
export function shellWord(text: string): string {
  return /^[\w./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/** learningRate → learning-rate. */
function kebab(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
}

/** The candidate that a slip of the finger may have meant; undefined where none is near. */
export function closest(given: string, candidates: readonly string[]): string | undefined {
  const name = given.toLowerCase();
  const distances = candidates.map((candidate) => ({
    candidate,
    distance: editDistance(name, candidate.toLowerCase()),
  }));
  const best = distances.reduce((a, b) => b.distance < a.distance ? b : a, { candidate: "", distance: Infinity });
  if (best.distance <= Math.ceil(name.length / 3)) return best.candidate;
  return name.length < 3 ? undefined : candidates.find((candidate) => candidate.toLowerCase().startsWith(name));
}

/** Insertions, deletions and replacements that turn one into the other (Levenshtein 1966). */
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      next[j] = Math.min(row[j] + 1, next[j - 1] + 1, row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1));
    }
    row = next;
  }
  return row[b.length];
}

function quote(text: string): string {
  return JSON.stringify(text);
}
