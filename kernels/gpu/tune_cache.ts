/**
 * Winners of tuning on disk: one JSON file for each adapter, driver and Deno version. A file that isn't whole or isn't this
 * adapter's counts as none. It knows no kernel and times nothing.
 */
import { join } from "node:path";
import { digest } from "./choices.ts";
import type { Device } from "./device.ts";

/** What was found out about one kind of call. */
export interface Winner {
  /** Fingerprint of the fastest candidate up to now. */
  readonly winner: string;
  /** How many candidates had their turn, in the order they are offered; the rest has its when there is time. */
  readonly tried: number;
  /** Digest of the fingerprints of all that were offered: another one means kernels changed, and it is tuned again. */
  readonly offered: string;
  /** Labels of the winner's dispatches, to read. */
  readonly kernel: string;
  /** Milliseconds of the call, by the winner and by the op's own best guess. */
  readonly milliseconds: number;
  readonly defaultMilliseconds: number;
  readonly flops: number;
  readonly bytes: number;
}

/** All that is known of an adapter, its driver and what runs on it. */
export type Identity = Readonly<Record<string, unknown>>;

export interface CacheFile {
  readonly version: 1;
  readonly identity: Identity;
  /** By the calls' descriptions. */
  readonly winners: Readonly<Record<string, Winner>>;
}

/** WGPT_CACHE, or `wgpt` in the user's cache folder; undefined where the environment tells none. */
export function cacheFolder(): string | undefined {
  const own = variable("WGPT_CACHE");
  if (own) return own;
  const local = Deno.build.os === "windows" ? variable("LOCALAPPDATA") : variable("XDG_CACHE_HOME");
  if (local) return join(local, "wgpt");
  const home = variable("HOME");
  return home ? join(home, ".cache", "wgpt") : undefined;
}

function variable(name: string): string | undefined {
  try {
    return Deno.env.get(name);
  } catch {
    return undefined; // no right to read it
  }
}

/** The winners of one adapter; reading and writing never fail, they `note` what went wrong. */
export class TuneCache {
  readonly path: string | undefined;
  readonly #identity: Identity;
  #winners: Record<string, Winner> = {};
  #refused = false;

  constructor(device: Device, folder: string | undefined, readonly note: (line: string) => void) {
    this.#identity = identify(device);
    const name = device.name.toLowerCase().replaceAll(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");
    if (folder === undefined) note("no cache folder for tuned kernels: set WGPT_CACHE");
    else this.path = join(folder, `${name}-${digest(this.#identity)}.json`);
    this.#winners = this.#read(note);
  }

  get(description: string): Winner | undefined {
    return this.#winners[description];
  }

  /** Fingerprints of all winners. */
  get fingerprints(): Readonly<Record<string, string>> {
    return Object.fromEntries(Object.entries(this.#winners).map(([call, { winner }]) => [call, winner]));
  }

  /** Keeps a winner, beside what other processes wrote meanwhile. */
  put(description: string, winner: Winner): void {
    this.#winners = { ...this.#read(() => {}), ...this.#winners, [description]: winner };
    if (this.path === undefined || this.#refused) return;
    const file: CacheFile = { version: 1, identity: this.#identity, winners: this.#winners };
    const beside = `${this.path}.tmp-${crypto.randomUUID()}`;
    try {
      Deno.mkdirSync(join(this.path, ".."), { recursive: true });
      Deno.writeTextFileSync(beside, JSON.stringify(file, null, 1) + "\n");
      Deno.renameSync(beside, this.path);
    } catch (error) {
      this.#refused = true;
      this.note(`tuned kernels can't be kept in ${this.path}: ${messageOf(error)}; they are tuned again next time`);
    }
  }

  #read(note: (line: string) => void): Record<string, Winner> {
    if (this.path === undefined) return {};
    try {
      const file = readCacheFile(this.path);
      if (file === undefined) return {};
      if (digest(file.identity) === digest(this.#identity)) return { ...file.winners };
      note(`${this.path} is ignored: it belongs to another adapter, driver or Deno`);
    } catch (error) {
      note(`${this.path} is ignored: ${messageOf(error)}`);
    }
    return {};
  }
}

/** Every cache file of a folder that is whole. */
export function listCaches(folder: string | undefined): CacheFile[] {
  if (folder === undefined) return [];
  let names: string[] = [];
  try {
    names = [...Deno.readDirSync(folder)].map(({ name }) => name).filter((name) => name.endsWith(".json")).sort();
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  return names.flatMap((name) => {
    try {
      return readCacheFile(join(folder, name)) ?? [];
    } catch {
      return []; // said where it would be used
    }
  });
}

/** @returns undefined where there is no file. @throws Error saying what is wrong with it. */
function readCacheFile(path: string): CacheFile | undefined {
  let text: string;
  try {
    text = Deno.readTextFileSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
  let file: CacheFile;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("it isn't JSON");
  }
  const winners = file?.version === 1 && typeof file.identity === "object" ? Object.values(file.winners ?? {}) : [];
  const whole = file?.version === 1 && typeof file.winners === "object" && winners.every(isWinner);
  if (!whole) throw new Error("it isn't a cache of this version");
  return file;
}

function isWinner(value: Partial<Winner> | null): boolean {
  const numbers = [value?.tried, value?.milliseconds, value?.defaultMilliseconds, value?.flops, value?.bytes];
  return [value?.winner, value?.offered, value?.kernel].every((text) => typeof text === "string") &&
    numbers.every((number) => typeof number === "number");
}

function identify({ name, info, features, capabilities }: Device): Identity {
  const limits = capabilities.limits as unknown as Record<string, number>;
  return {
    name,
    vendor: info.vendor,
    device: info.device,
    architecture: info.architecture,
    features,
    subgroupSize: capabilities.subgroupSize,
    limits: Object.fromEntries(LIMITS.map((limit) => [limit, limits[limit]])),
    backend: variable("DENO_WEBGPU_BACKEND") ?? "",
    os: `${Deno.build.os} ${Deno.build.arch}`,
    deno: Deno.version.deno,
  };
}

/** Limits that tell drivers apart. */
const LIMITS = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxComputeWorkgroupStorageSize",
  "maxComputeInvocationsPerWorkgroup",
  "maxStorageBuffersPerShaderStage",
  "maxTextureDimension2D",
] as const;

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
