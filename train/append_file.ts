/** A file that grows by values of one type, through a buffer, and can be cut back to what it was. It doesn't know what they mean. */
import { UserError } from "../model/errors.ts";
import { type Tokens, writing } from "./shards.ts";

export class AppendFile implements Disposable {
  readonly #file: Deno.FsFile;
  readonly #buffer: Tokens;
  #used = 0;
  #open = true;

  /** Cuts the file at `bytes`; a new one, which may be missing, has the `fresh` ones. */
  constructor(readonly path: string, bytes: number, fresh: number, buffer: Tokens) {
    this.#buffer = buffer;
    this.#file = writing(path, () => Deno.openSync(path, { read: true, write: true, create: true }));
    try {
      const { size } = this.#file.statSync();
      if (size < bytes && bytes > fresh) {
        throw new UserError(
          `Cannot go on with ${path}: it has ${size} bytes, wanted ${bytes}; remove the folder and start again`,
        );
      }
      writing(path, () => this.#file.truncateSync(bytes));
      this.#file.seekSync(0, Deno.SeekMode.End);
    } catch (error) {
      this.#file.close();
      throw error;
    }
  }

  append(values: Tokens): void {
    for (let from = 0; from < values.length;) {
      const count = Math.min(values.length - from, this.#buffer.length - this.#used);
      this.#buffer.set(values.subarray(from, from + count), this.#used);
      this.#used += count;
      from += count;
      if (this.#used === this.#buffer.length) this.#flush();
    }
  }

  /** Appends another file's bytes. */
  appendFile(path: string): void {
    this.#flush();
    using source = Deno.openSync(path, { read: true });
    const part = new Uint8Array(1 << 18);
    for (let count = source.readSync(part); count !== null; count = source.readSync(part)) {
      this.#write(part.subarray(0, count));
    }
  }

  overwrite(offset: number, bytes: Uint8Array): void {
    this.#flush();
    writing(this.path, () => this.#file.seekSync(offset, Deno.SeekMode.Start));
    this.#write(bytes);
  }

  sync(): void {
    this.#flush();
    writing(this.path, () => this.#file.syncSync());
  }

  [Symbol.dispose](): void {
    if (this.#open) this.#file.close();
    this.#open = false;
  }

  #flush(): void {
    const { buffer, BYTES_PER_ELEMENT } = this.#buffer;
    this.#write(new Uint8Array(buffer, 0, this.#used * BYTES_PER_ELEMENT));
    this.#used = 0;
  }

  #write(bytes: Uint8Array): void {
    writing(this.path, () => {
      for (let done = 0; done < bytes.length;) done += this.#file.writeSync(bytes.subarray(done));
    });
  }
}
