/** Follows a run's metrics.jsonl as it grows, is cut back by a resumed run, or goes. It keeps no record and knows no page. */
import { createHash } from "node:crypto";
import { join } from "node:path";
import { type MetricRecord, parseRecord } from "../model/run_metrics.ts";

/** Bytes read at once, and so the longest line. */
const CHUNK = 1 << 18;
/** Bytes before a position by which it is known again: more than an update's line. */
const MARK = 512;
const NEWLINE = 10;

/** Records that came; after `reset` all earlier ones are void. */
export interface Batch {
  readonly reset: boolean;
  readonly records: readonly MetricRecord[];
}

/** Opens a file of a run's folder; undefined where it is missing, no plain file, or a link that leads out of the folder. */
export async function openInside(folder: string, name: string): Promise<Deno.FsFile | undefined> {
  try {
    const [root, path] = await Promise.all([Deno.realPath(folder), Deno.realPath(join(folder, name))]);
    if (path !== join(root, name) || !(await Deno.stat(path)).isFile) return undefined;
    return await Deno.open(path);
  } catch {
    return undefined; // it may go between any two looks at it
  }
}

/** Reads bytes [from, from + size), fewer at the file's end. */
export async function readRange(file: Deno.FsFile, from: number, size: number): Promise<Uint8Array> {
  await file.seek(from, Deno.SeekMode.Start);
  const bytes = new Uint8Array(size);
  let length = 0;
  for (let count; length < size && (count = await file.read(bytes.subarray(length)));) length += count;
  return bytes.subarray(0, length);
}

export class RunReader {
  #offset = 0;
  #mark = "";
  #file: string | undefined;
  #fresh = true;

  /** `position` is where another reader of this run stopped; one that doesn't fit the file starts anew. */
  constructor(readonly folder: string, position?: string) {
    const [, offset, mark] = /^(\d{1,15})-([0-9a-f]{12})$/.exec(position ?? "") ?? [];
    if (offset === undefined) return;
    this.#offset = Number(offset);
    this.#mark = mark;
    this.#fresh = false;
  }

  /** Where this reader is, for another to go on. */
  get position(): string {
    return this.#offset === 0 ? "0" : `${this.#offset}-${this.#mark}`;
  }

  /** What came since the last call, in whole lines; a half-written last one waits. */
  async *read(): AsyncGenerator<Batch> {
    using file = await openInside(this.folder, "metrics.jsonl");
    if (file === undefined) {
      if (this.#offset > 0) yield this.#startAnew([]);
      return;
    }
    if (!await this.#fits(file)) yield this.#startAnew([]);
    for (;;) {
      const bytes = await readRange(file, this.#offset, CHUNK);
      const whole = bytes.lastIndexOf(NEWLINE) + 1 || (bytes.length === CHUNK ? CHUNK : 0);
      if (whole === 0) return;
      const lines = new TextDecoder().decode(bytes.subarray(0, whole)).split("\n");
      this.#offset += whole;
      this.#mark = await this.#markAt(file);
      const records = lines.map(parseRecord).filter((record) => record !== undefined);
      yield this.#fresh ? this.#startAnew(records, this.#offset) : { reset: false, records };
    }
  }

  #startAnew(records: readonly MetricRecord[], offset = 0): Batch {
    this.#offset = offset;
    this.#fresh = offset === 0;
    return { reset: true, records };
  }

  /** Whether what was read still stands in the file. */
  async #fits(file: Deno.FsFile): Promise<boolean> {
    const { ino, size } = await file.stat();
    const known = this.#file === undefined || this.#file === `${ino}`;
    this.#file = `${ino}`;
    if (this.#offset === 0) return true;
    return known && size >= this.#offset && await this.#markAt(file) === this.#mark;
  }

  async #markAt(file: Deno.FsFile): Promise<string> {
    const from = Math.max(0, this.#offset - MARK);
    const bytes = await readRange(file, from, this.#offset - from);
    return createHash("sha256").update(bytes).digest("hex").slice(0, 12);
  }
}
