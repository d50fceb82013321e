/**
 * The folder that prepare writes into: who may write, how far it got, and whether what stands there was made the same way.
 * It knows no documents.
 */
import { join } from "node:path";
import { UserError } from "../model/errors.ts";
import { writeAll, writeAtomically } from "../model/files.ts";
import { MANIFEST, type Manifest, type PackingOptions, readManifest, type Skipped, type Split } from "./manifest.ts";
import { sha256 } from "./prepare_bytes.ts";
import type { SplitState } from "./prepare_output.ts";
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
  readonly splits: Readonly<Record<Split, SplitState>>;
  readonly skipped: Skipped;
}

export const ANOTHER = "choose another folder for --out, or remove this one";
const PROGRESS = "progress.json";
const LOCK = "prepare.lock";

/** A folder that only this process writes into. */
export class OutputFolder implements Disposable {
  readonly #lock: Deno.FsFile;

  /** Makes the folder where there is none. @throws UserError where it can't be written, or another process writes there. */
  constructor(readonly path: string) {
    writing(path, () => Deno.mkdirSync(path, { recursive: true }));
    const lock = join(path, LOCK);
    this.#lock = writing(lock, () => Deno.openSync(lock, { create: true, write: true }));
    if (this.#lock.tryLockSync(true)) return;
    this.#lock.close();
    throw new UserError(`Cannot prepare into ${path}: another prepare is writing there; wait for it or stop it`);
  }

  /** The manifest, where preparing was finished. */
  async finished(): Promise<Manifest | undefined> {
    return this.#has(MANIFEST) ? await readManifest(this.path) : undefined;
  }

  /** How far an interrupted prepare got; undefined in an empty folder. @throws UserError where anything else is there. */
  async state(): Promise<State | undefined> {
    const names = [...Deno.readDirSync(this.path)].map(({ name }) => name);
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
    const foreign = names.find((name) => name !== LOCK && !name.startsWith(`${PROGRESS}.tmp-`));
    if (foreign === undefined) return undefined;
    throw new UserError(
      `Cannot prepare into ${this.path}: it holds ${foreign}; choose an empty folder or a new one for --out`,
    );
  }

  async writeState(state: State): Promise<void> {
    await this.#write(PROGRESS, state);
  }

  /** Writes the manifest, with which the data is whole, and clears up. */
  async finish(manifest: Manifest): Promise<void> {
    await this.#write(MANIFEST, manifest);
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
    const bytes = new TextEncoder().encode(JSON.stringify(value, null, name === MANIFEST ? 2 : undefined) + "\n");
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
 * Checks that the first sources are still what they were, so that what was made of them stands. A local file is the same if
 * its size and its time are, or its size and its content.
 */
export function checkSources(folder: string, made: readonly SourceState[], wanted: readonly Source[]): void {
  made.forEach((had, index) => {
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
