/**
 * The shard file: packed rows of token ids with a table of where documents start. Strict both ways; it doesn't know what
 * the tokens mean or how rows are chosen.
 *
 * Little endian, in this order:
 *
 * | offset | bytes | field                                                                              |
 * | ------ | ----- | ---------------------------------------------------------------------------------- |
 * | 0      | 8     | magic, "WGPTROWS"                                                                  |
 * | 8      | 4     | version, 1                                                                         |
 * | 12     | 4     | bytes of this header, 64                                                           |
 * | 16     | 4     | bytes of a token: 2 where the vocabulary has at most 65,536 tokens, else 4         |
 * | 20     | 4     | context; a row is context + 1 tokens                                               |
 * | 24     | 4     | vocabulary: every token is below it                                                |
 * | 28     | 4     | end-of-text token, the first token of each document and the padding                |
 * | 32     | 8     | rows                                                                               |
 * | 40     | 8     | tokens that aren't padding; padding fills the end of the last row only             |
 * | 48     | 8     | documents that start in this shard                                                 |
 * | 56     | 8     | zero                                                                               |
 * | 64     |       | rows · (context + 1) tokens, then zero bytes up to a multiple of 4                 |
 * |        |       | documents × 4 bytes: the token each starts at, counted from the shard's first, ascending |
 */
import { UserError } from "../model/errors.ts";
import { explainIo } from "../model/files.ts";

export interface ShardFormat {
  /** Tokens a row trains on; rows hold one more. */
  readonly context: number;
  readonly vocabSize: number;
  readonly endOfText: number;
}

export interface ShardHeader extends ShardFormat {
  readonly bytesPerToken: 2 | 4;
  readonly rows: number;
  readonly tokens: number;
  readonly documents: number;
}

export type Tokens = Uint16Array<ArrayBuffer> | Uint32Array<ArrayBuffer>;

export const HEADER_BYTES = 64;
const MAGIC = "WGPTROWS";
const VERSION = 1;
const READ_TOKENS = 1 << 20;

/** How wide a token is stored. */
export function bytesPerToken(vocabSize: number): 2 | 4 {
  return vocabSize <= 65536 ? 2 : 4;
}

/** An array for `length` tokens as they are stored. */
export function tokenArray(vocabSize: number, length: number): Tokens {
  return bytesPerToken(vocabSize) === 2 ? new Uint16Array(length) : new Uint32Array(length);
}

/** Bytes of a whole shard file. */
export function shardBytes({ rows, context, bytesPerToken, documents }: ShardHeader): number {
  return tableOffset(rows, context, bytesPerToken) + documents * 4;
}

/** Where the table of document starts begins. */
export function tableOffset(rows: number, context: number, bytesPerToken: number): number {
  return HEADER_BYTES + Math.ceil(rows * (context + 1) * bytesPerToken / 4) * 4;
}

export function encodeHeader(header: ShardHeader): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(HEADER_BYTES);
  const view = new DataView(bytes.buffer);
  bytes.set(new TextEncoder().encode(MAGIC));
  const words = [VERSION, HEADER_BYTES, header.bytesPerToken, header.context, header.vocabSize, header.endOfText];
  words.forEach((word, index) => view.setUint32(8 + index * 4, word, true));
  view.setBigUint64(32, BigInt(header.rows), true);
  view.setBigUint64(40, BigInt(header.tokens), true);
  view.setBigUint64(48, BigInt(header.documents), true);
  return bytes;
}

/**
 * Reads and checks a header against the size of its file.
 *
 * @throws UserError naming the file and what is wrong with it.
 */
export function decodeHeader(bytes: Uint8Array, fileBytes: number, name: string): ShardHeader {
  const bad = (what: string): never => {
    throw new UserError(`Cannot read shard ${name}: ${what}; prepare the data again`);
  };
  if (bytes.length < HEADER_BYTES) bad(`it has ${bytes.length} bytes, a header has ${HEADER_BYTES}`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const word = (offset: number) => view.getUint32(offset, true);
  const long = (offset: number) => Number(view.getBigUint64(offset, true));
  const magic = String.fromCharCode(...bytes.subarray(0, 8));
  if (magic !== MAGIC) bad("it is no shard, its first 8 bytes aren't WGPTROWS");
  if (word(8) !== VERSION) bad(`its version is ${word(8)}, wanted ${VERSION}`);
  if (word(12) !== HEADER_BYTES) bad(`its header has ${word(12)} bytes, wanted ${HEADER_BYTES}`);
  const [width, context, vocabSize, endOfText] = [word(16), word(20), word(24), word(28)];
  const [rows, tokens, documents] = [long(32), long(40), long(48)];
  if (context < 1) bad("its context is 0");
  if (endOfText >= vocabSize) bad(`its end-of-text token ${endOfText} is outside its vocabulary of ${vocabSize}`);
  if (width !== bytesPerToken(vocabSize)) bad(`its tokens have ${width} bytes with a vocabulary of ${vocabSize}`);
  const room = rows * (context + 1);
  if (rows < 1 || tokens > room || tokens <= room - (context + 1)) {
    bad(`${tokens} tokens don't fill ${rows} rows of ${context + 1}`);
  }
  if (documents > tokens) bad(`it has ${documents} documents in ${tokens} tokens`);
  if (word(56) !== 0 || word(60) !== 0) bad("its reserved bytes aren't zero");
  const header: ShardHeader = {
    bytesPerToken: bytesPerToken(vocabSize),
    context,
    vocabSize,
    endOfText,
    rows,
    tokens,
    documents,
  };
  const wanted = shardBytes(header);
  if (wanted !== fileBytes) bad(`it has ${fileBytes} bytes, its header wants ${wanted}`);
  return header;
}

/** One shard open for reading. */
export class Shard implements Disposable {
  readonly header: ShardHeader;
  /** Token index at which each document starts, ascending. */
  readonly starts: Uint32Array;
  readonly #file: Deno.FsFile;

  /** @throws UserError where the file isn't a whole, valid shard. */
  constructor(readonly path: string) {
    try {
      this.#file = Deno.openSync(path, { read: true });
    } catch (error) {
      throw explainIo("open shard", path, error);
    }
    try {
      const { size } = this.#file.statSync();
      const head = new Uint8Array(Math.min(HEADER_BYTES, size));
      this.#readAt(0, head);
      this.header = decodeHeader(head, size, path);
      this.starts = this.#readStarts();
    } catch (error) {
      this.#file.close();
      throw error;
    }
  }

  /**
   * The tokens of some rows, as stored: (count · (context + 1)).
   *
   * @throws RangeError where the rows aren't in the shard; UserError where a token isn't in the vocabulary.
   */
  rows(first: number, count: number): Tokens {
    const { rows, context, vocabSize, bytesPerToken } = this.header;
    if (first < 0 || count < 0 || first + count > rows) {
      throw new RangeError(`Cannot read rows ${first} to ${first + count} of ${this.path}: it has ${rows}`);
    }
    const tokens = tokenArray(vocabSize, count * (context + 1));
    this.#readAt(HEADER_BYTES + first * (context + 1) * bytesPerToken, new Uint8Array(tokens.buffer));
    for (let index = 0; index < tokens.length; index++) {
      if (tokens[index] >= vocabSize) {
        const row = first + Math.floor(index / (context + 1));
        this.#bad(`row ${row} has token ${tokens[index]}, its vocabulary has ${vocabSize}`);
      }
    }
    return tokens;
  }

  /** Reads everything and checks what reading rows can't: documents start with end-of-text, padding is padding. */
  verify(): void {
    const { rows, context, tokens, endOfText } = this.header;
    const step = Math.max(1, Math.floor(READ_TOKENS / (context + 1)));
    let document = 0;
    for (let row = 0; row < rows; row += step) {
      const part = this.rows(row, Math.min(step, rows - row));
      const from = row * (context + 1);
      for (; document < this.starts.length && this.starts[document] < from + part.length; document++) {
        const at = this.starts[document];
        if (part[at - from] !== endOfText) {
          this.#bad(`document ${document} at token ${at} doesn't start with end-of-text`);
        }
      }
      for (let pad = Math.max(tokens - from, 0); pad < part.length; pad++) {
        if (part[pad] !== endOfText) this.#bad(`its padding at token ${from + pad} isn't end-of-text`);
      }
    }
  }

  [Symbol.dispose](): void {
    this.#file.close();
  }

  #readStarts(): Uint32Array {
    const { rows, context, bytesPerToken, documents, tokens } = this.header;
    const starts = new Uint32Array(documents);
    this.#readAt(tableOffset(rows, context, bytesPerToken), new Uint8Array(starts.buffer));
    for (let index = 0; index < documents; index++) {
      if (index > 0 && starts[index] <= starts[index - 1]) this.#bad("its document starts don't ascend");
      if (starts[index] >= tokens) this.#bad(`a document starts at token ${starts[index]} of ${tokens}`);
    }
    return starts;
  }

  #readAt(offset: number, into: Uint8Array): void {
    this.#file.seekSync(offset, Deno.SeekMode.Start);
    for (let done = 0; done < into.length;) {
      const count = this.#file.readSync(into.subarray(done));
      if (count === null) this.#bad(`it ends at byte ${offset + done}`);
      else done += count;
    }
  }

  #bad(what: string): never {
    throw new UserError(`Cannot read shard ${this.path}: ${what}; prepare the data again`);
  }
}

/** Runs what writes to a path; what the system refuses becomes a UserError that names the path and the reason. */
export function writing<T>(path: string, action: () => T): T {
  try {
    return action();
  } catch (error) {
    throw explainIo("write", path, error);
  }
}
