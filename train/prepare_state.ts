/**
 * The folder that prepare writes into: who may write, how far it got, and whether what stands there was made the same way.
 * It knows no documents.
 */
import { join } from "node:path";
import { UserError } from "../model/errors.ts";
import { writeAll, writeAtomically } from "../model/files.ts";
import { MANIFEST, type PackingOptions, PART_FOLDER, type Skipped } from "./manifest.ts";
import { sha256 } from "./prepare_bytes.ts";
import type { SplitStates } from "./prepare_output.ts";
import type { Source } from "./prepare_sources.ts";
import { writing } from "./shards.ts";

/** What must be the same for writing to go on. */
export interface Settings extends PackingOptions {
  readonly context: number;
  readonly tokenizer: string;
  readonly pieceBytes: number;
}

/** A source as it was when it was read. */
export type SourceState = Pick<Source, "path" | "format" | "bytes" | "tag" | "modified"> & { sha256?: string };

/** How far prepare got: everything before is on disk, and what was written after is made again. */
export interface State {
  readonly version: 1;
  readonly settings: Settings;
  readonly sources: readonly SourceState[];
  /** Pieces whose documents are written. */
  readonly pieces: number;
  readonly splits: SplitStates;
  readonly skipped: Skipped;
  /** Of a part: what tells its pieces from those of another plan. */
  readonly plan?: string;
  /** Of a merge: how many parts. */
  readonly parts?: number;
}

/** Reasons that are kept of all for which something was skipped. */
export const REASONS = 100;
export const nothingSkipped: Skipped = { files: 0, rowGroups: 0, documents: 0, reasons: [] };

export const ANOTHER = "choose another folder for --out, or remove this one";
/** What stands in the folder of a part that is done. */
export const PART = "part.json";
export const PROGRESS = "progress.json";
const LOCK = "prepare.lock";

/** A folder that only this process writes into. */
export class OutputFolder implements Disposable {
  readonly #lock: Deno.FsFile;

  /** Makes the folder where there is none. @throws UserError where it can't be written, or another process writes there. */
  constructor(readonly path: string, readonly role: "whole" | "part" | "merge" = "whole") {
    writing(path, () => Deno.mkdirSync(path, { recursive: true }));
    const lock = join(path, LOCK);
    this.#lock = writing(lock, () => Deno.openSync(lock, { create: true, write: true }));
    if (this.#lock.tryLockSync(true)) return;
    this.#lock.close();
    throw new UserError(`Cannot prepare into ${path}: another prepare is writing there; wait for it or stop it`);
  }

  /** Whether preparing was finished. */
  get finished(): boolean {
    return this.#has(this.#final);
  }

  get #final(): string {
    return this.role === "part" ? PART : MANIFEST;
  }

  /** How far an interrupted prepare got; undefined in an empty folder. @throws UserError where anything else is there. */
  async state(): Promise<State | undefined> {
    const names = [...Deno.readDirSync(this.path)].map(({ name }) => name);
    const parts = names.some((name) => PART_FOLDER.test(name));
    if (parts && this.role === "whole") {
      throw new UserError(
        `Cannot prepare into ${this.path}: it holds parts; prepare those that are missing with --shard, and join them with ` +
          "--merge",
      );
    }
    if (names.includes(PROGRESS)) {
      const path = join(this.path, PROGRESS);
      try {
        const state = JSON.parse(await Deno.readTextFile(path)) as State;
        if (state.version === 1) return state;
      } catch {
        // told below
      }
      throw new UserError(`Cannot go on in ${this.path}: ${PROGRESS} is damaged; remove the folder and start again`);
    }
    const own = (name: string) => name === LOCK || name.startsWith(`${PROGRESS}.tmp-`) || PART_FOLDER.test(name);
    const foreign = names.find((name) => !own(name));
    if (foreign === undefined) return undefined;
    throw new UserError(
      `Cannot prepare into ${this.path}: it holds ${foreign}; choose an empty folder or a new one for --out`,
    );
  }

  async writeState(state: State): Promise<void> {
    await this.#write(PROGRESS, state);
  }

  /** Writes the manifest of what was prepared, with which it is whole, and clears up. */
  async finish(manifest: object): Promise<void> {
    await this.#write(this.#final, manifest);
    this.clearUp();
  }

  /** Removes what only an unfinished folder needs. */
  clearUp(): void {
    for (const { name } of Deno.readDirSync(this.path)) {
      const path = join(this.path, name);
      if (name === LOCK || name.startsWith(PROGRESS)) writing(path, () => Deno.removeSync(path));
    }
  }

  [Symbol.dispose](): void {
    this.#lock.close();
    if (this.#has(PROGRESS)) return;
    try {
      Deno.removeSync(join(this.path, LOCK));
      Deno.removeSync(this.path); // only an empty folder goes
    } catch {
      // there is more in it
    }
  }

  #has(name: string): boolean {
    try {
      return Deno.statSync(join(this.path, name)).isFile;
    } catch {
      return false;
    }
  }

  async #write(name: string, value: unknown): Promise<void> {
    const bytes = new TextEncoder().encode(JSON.stringify(value, null, name === PROGRESS ? undefined : 2) + "\n");
    await writeAtomically(join(this.path, name), (file) => writeAll(file, bytes));
  }
}

/** @throws UserError where data was made with other settings, naming the first that differs. */
export function checkSettings(folder: string, made: Partial<Settings>, wanted: Settings): void {
  for (const key of Object.keys(wanted) as (keyof Settings)[]) {
    if (!(key in made) || made[key] === wanted[key]) continue;
    const [had, asked] = key === "tokenizer"
      ? ["another tokenizer", "this one"]
      : [`${key} ${made[key]}`, `${wanted[key]}`];
    throw new UserError(`Cannot prepare into ${folder}: it was made with ${had}, wanted ${asked}; ${ANOTHER}`);
  }
}

/**
 * Checks that the first sources, without those before `from`, are still what they were, so that what was made of them stands. A local file is the same if
 * its size and its time are, or its size and its content.
 */
export function checkSources(
  folder: string,
  made: readonly SourceState[],
  wanted: readonly Source[],
  from = 0,
): void {
  made.slice(from).forEach((had, offset) => {
    const index = from + offset;
    const now = wanted[index];
    const changed = now === undefined
      ? `it was made from ${had.path} too`
      : now.path !== had.path || now.format !== had.format
      ? `it was made from ${had.path}, wanted ${now.path}`
      : isSame(had, now)
      ? undefined
      : `${had.path} changed since it was read`;
    if (changed) throw new UserError(`Cannot prepare into ${folder}: ${changed}; ${ANOTHER}`);
  });
}

function isSame(had: SourceState, { location, bytes, tag, modified }: Source): boolean {
  if (had.bytes !== bytes || had.tag !== tag) return false;
  if (location.kind !== "file") return true;
  if (modified !== undefined && had.modified === modified) return true;
  return had.sha256 !== undefined && sha256(location.path) === had.sha256;
}

/** The sources with the hash of every local one: what wasn't read yet is read now. */
export function hashed(states: readonly SourceState[], sources: readonly Source[]): SourceState[] {
  return states.map((state, index) => {
    const { location } = sources[index];
    return location.kind === "file" ? { ...state, sha256: state.sha256 ?? sha256(location.path) } : state;
  });
}
