/**
 * Files and folders that appear whole or not at all: written beside, synced, renamed. It knows nothing of what is in them.
 */

import { basename, dirname, join, resolve } from "node:path";
import { UserError } from "./errors.ts";

/** Error codes that say the user has no right to do this; they end a program with exit code 4. */
const NO_RIGHT = ["EACCES", "EPERM", "EROFS"];

/** What the operating system refused, as a UserError naming the path; any other error comes back as it is. */
export function explainIo(action: string, path: string, error: unknown): unknown {
  if (!(error instanceof Error) || error instanceof UserError) return error;
  const code = (error as { code?: string }).code;
  const denied = error instanceof Deno.errors.NotCapable || NO_RIGHT.includes(code ?? "");
  if (code === undefined && !denied && !/\(os error \d+\)/.test(error.message)) return error;
  const reason = error.message.replace(/ \(os error \d+\).*$/s, "").replaceAll("\n", " ");
  return new UserError(`Cannot ${action} ${path}: ${reason}`, denied ? 4 : 1);
}

/**
 * Writes a file beside `path`, syncs it and renames it to `path`; a crash leaves what stood there before.
 * @throws UserError naming the path where the disk is full or the folder not writable, and leaves nothing behind then.
 */
export async function writeAtomically(path: string, write: (file: Deno.FsFile) => Promise<void>): Promise<void> {
  const temporary = `${path}.tmp-${crypto.randomUUID()}`;
  try {
    try {
      using file = await Deno.open(temporary, { write: true, createNew: true });
      await write(file);
      await file.sync();
    } catch (error) {
      await removeIfThere(temporary);
      throw error;
    }
    await Deno.rename(temporary, path);
    await syncPath(dirname(path));
  } catch (error) {
    throw explainIo("write", path, error);
  }
}

/** Writes all of `bytes`; FsFile.write may take only a part. */
export async function writeAll(file: Deno.FsFile, bytes: Uint8Array): Promise<void> {
  for (let written = 0; written < bytes.length;) written += await file.write(bytes.subarray(written));
}

/** Writes all of `bytes` and returns when they are written. */
export function writeAllSync(file: { writeSync(bytes: Uint8Array): number }, bytes: Uint8Array): void {
  for (let written = 0; written < bytes.length;) written += file.writeSync(bytes.subarray(written));
}

/**
 * Lets `fill` write a folder beside `folder`, syncs all of it and puts it in `folder`'s place. At every moment the old or the
 * new folder stands whole, under its name or, between two renames, as `folder.old-…`, where standingFolder() finds it.
 * Leftovers of writers that died are removed first, so one folder must have one writer at a time.
 * Returns the path written: `folder` with links resolved.
 */
export async function replaceFolder(folder: string, fill: (temporary: string) => Promise<void>): Promise<string> {
  try {
    const target = await realPath(folder);
    await Deno.mkdir(dirname(target), { recursive: true });
    await recover(target);
    const temporary = `${target}.tmp-${crypto.randomUUID()}`;
    try {
      await Deno.mkdir(temporary);
      await fill(temporary);
      await syncFolder(temporary);
      await swap(temporary, target);
    } catch (error) {
      await removeIfThere(temporary);
      throw error;
    }
    return target;
  } catch (error) {
    throw explainIo("write", folder, error);
  }
}

/** Where the folder's content stands now: itself, or the old one if a writer died between its two renames. */
export async function standingFolder(folder: string): Promise<string> {
  const target = await realPath(folder);
  if (await isFolder(target)) return target;
  const [old] = await beside(target, ".old-");
  return old ?? target;
}

async function swap(temporary: string, target: string): Promise<void> {
  const old = `${target}.old-${crypto.randomUUID()}`;
  const replaces = await isFolder(target);
  if (replaces) await Deno.rename(target, old);
  try {
    await Deno.rename(temporary, target);
  } catch (error) {
    if (replaces) await Deno.rename(old, target);
    throw error;
  }
  await syncPath(dirname(target));
  if (replaces) await Deno.remove(old, { recursive: true });
}

/** Undoes what a writer that died left: an old folder without a new one goes back to its place, the rest goes. */
async function recover(target: string): Promise<void> {
  const olds = await beside(target, ".old-");
  if (olds.length > 0 && !(await isFolder(target))) await Deno.rename(olds.shift()!, target);
  for (const leftover of [...olds, ...await beside(target, ".tmp-")]) await Deno.remove(leftover, { recursive: true });
}

/** Paths in the same folder named like `target` followed by `mark`. */
async function beside(target: string, mark: string): Promise<string[]> {
  const parent = dirname(target);
  const found: string[] = [];
  try {
    for await (const entry of Deno.readDir(parent)) {
      if (entry.name.startsWith(basename(target) + mark)) found.push(join(parent, entry.name));
    }
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  return found.sort();
}

async function syncFolder(folder: string): Promise<void> {
  for await (const entry of Deno.readDir(folder)) {
    const path = join(folder, entry.name);
    await (entry.isDirectory ? syncFolder(path) : syncPath(path));
  }
  await syncPath(folder);
}

/** Waits until a file, or the names in a folder, are on the disk. Windows can't sync a folder and needs not to. */
async function syncPath(path: string): Promise<void> {
  if (Deno.build.os === "windows" && await isFolder(path)) return;
  using file = await Deno.open(path, { read: true, write: Deno.build.os === "windows" });
  await file.sync();
}

async function isFolder(path: string): Promise<boolean> {
  try {
    return (await Deno.stat(path)).isDirectory;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

/** Whether anything stands at a path. @throws UserError where that can't be told. */
export async function exists(path: string): Promise<boolean> {
  try {
    await Deno.stat(path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw explainIo("read", path, error);
  }
}

async function removeIfThere(path: string): Promise<void> {
  try {
    await Deno.remove(path, { recursive: true });
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

/** The absolute path with links resolved, or the path made absolute where nothing stands there. */
async function realPath(path: string): Promise<string> {
  try {
    return await Deno.realPath(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    return resolve(path);
  }
}
