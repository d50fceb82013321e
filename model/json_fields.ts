/** JSON files that people edit: read with every fault named. It knows no particular file. */

import { UserError } from "./errors.ts";
import { explainIo } from "./files.ts";

/** Parses a JSON file. Throws UserError naming the file where it can't be read or is no JSON. */
export async function readJson(path: string): Promise<unknown> {
  let text: string;
  try {
    text = await Deno.readTextFile(path);
  } catch (error) {
    throw explainIo("read", path, error);
  }
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new UserError(`Cannot read ${path}: no valid JSON: ${(error as Error).message.replaceAll("\n", " ")}`);
  }
}

/** Typed reading of a JSON object's fields. Every refusal names the file and the field. */
export class Fields {
  readonly #values: Readonly<Record<string, unknown>>;

  constructor(json: unknown, readonly file: string) {
    if (typeof json !== "object" || json === null || Array.isArray(json)) {
      throw new UserError(`Cannot use ${file}: it holds no JSON object`);
    }
    this.#values = json as Record<string, unknown>;
  }

  refuse(name: string, reason: string): never {
    throw new UserError(`Cannot use ${this.file}: ${name}: ${reason}`);
  }

  /** Null counts as absent, as in Hugging Face's files. */
  has(name: string): boolean {
    return Object.hasOwn(this.#values, name) && (this.#values[name] ?? null) !== null;
  }

  #get(name: string): unknown {
    return this.has(name) ? this.#values[name] : this.refuse(name, "the field is missing");
  }

  #wrong(name: string, wanted: string): never {
    return this.refuse(name, `found ${JSON.stringify(this.#values[name])}, wanted ${wanted}`);
  }

  size(name: string, most = 2 ** 31 - 1): number {
    const value = this.#get(name);
    if (typeof value !== "number" || !Number.isSafeInteger(value) || value < 1 || value > most) {
      this.#wrong(name, `an integer from 1 to ${most}`);
    }
    return value;
  }

  /** A token id: an integer from 0, possibly past the vocabulary (as in some published files), or none. */
  token(name: string, fallback: number | null): number | null {
    if (!Object.hasOwn(this.#values, name)) return fallback;
    if (!this.has(name)) return null;
    const value = this.#get(name);
    return isTokenId(value) ? value : this.#wrong(name, "a token id");
  }

  /** One token id, a list of them, or none. */
  tokens(name: string): readonly number[] {
    if (!this.has(name)) return [];
    const value = this.#get(name);
    const list = Array.isArray(value) ? value : [value];
    return list.every(isTokenId) ? list : this.#wrong(name, "a token id or a list of them");
  }

  /** A number from `least` up to but without `limit`. */
  number(name: string, fallback: number, least: number, limit: number): number {
    if (!this.has(name)) return fallback;
    const value = this.#get(name);
    if (typeof value !== "number" || !(value >= least && value < limit)) {
      this.#wrong(name, limit === Infinity ? `a number from ${least}` : `a number from ${least} to below ${limit}`);
    }
    return value;
  }

  boolean(name: string, fallback: boolean): boolean {
    if (!this.has(name)) return fallback;
    const value = this.#get(name);
    return typeof value === "boolean" ? value : this.#wrong(name, "true or false");
  }

  strings(name: string, fallback: readonly string[]): readonly string[] {
    if (!this.has(name)) return fallback;
    const value = this.#get(name);
    if (!Array.isArray(value) || value.some((entry) => typeof entry !== "string")) this.#wrong(name, "a list of names");
    return value as string[];
  }

  oneOf<const T extends string>(name: string, choices: readonly T[], fallback?: T): T {
    if (fallback !== undefined && !this.has(name)) return fallback;
    const value = this.#get(name);
    const found = choices.find((choice) => choice === value);
    return found ?? this.#wrong(name, choices.map((choice) => JSON.stringify(choice)).join(" or "));
  }
}

function isTokenId(value: unknown): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
}
