/**
 * Writes one shard so that it can be stopped at any moment: tokens are appended to a partial file, document starts to
 * another beside it, and the whole gets its header and its name only when it is complete. It doesn't know what is resumed.
 */
import {
  bytesPerToken,
  encodeHeader,
  HEADER_BYTES,
  Shard,
  shardBytes,
  type ShardFormat,
  type ShardHeader,
  tableOffset,
  tokenArray,
  type Tokens,
  writing,
} from "./shards.ts";
import { AppendFile } from "./append_file.ts";

const BUFFER_TOKENS = 1 << 18;
const BUFFER_STARTS = 1 << 13;

export class ShardWriter implements Disposable {
  readonly #rows: AppendFile;
  readonly #starts: AppendFile;
  #tokens: number;
  #documents: number;

  /** Opens a new shard, or goes on with one that holds so many tokens and document starts: what was written after is cut. */
  constructor(readonly path: string, readonly format: ShardFormat, from = { tokens: 0, documents: 0 }) {
    if (from.tokens > 0) reopen(path, from.documents);
    const width = bytesPerToken(format.vocabSize);
    this.#rows = new AppendFile(
      `${path}.partial`,
      HEADER_BYTES + from.tokens * width,
      HEADER_BYTES,
      tokenArray(format.vocabSize, BUFFER_TOKENS),
    );
    try {
      this.#starts = new AppendFile(`${path}.starts`, from.documents * 4, 0, new Uint32Array(BUFFER_STARTS));
    } catch (error) {
      this.#rows[Symbol.dispose]();
      throw error;
    }
    this.#tokens = from.tokens;
    this.#documents = from.documents;
  }

  get tokens(): number {
    return this.#tokens;
  }

  get documents(): number {
    return this.#documents;
  }

  /** Appends tokens; where `starts` is true, a document starts at the first of them. */
  append(tokens: Tokens, starts: boolean): void {
    if (starts) {
      this.#starts.append(Uint32Array.of(this.#tokens));
      this.#documents++;
    }
    this.#rows.append(tokens);
    this.#tokens += tokens.length;
  }

  /** Brings everything to disk: what was appended so far survives. */
  sync(): void {
    this.#rows.sync();
    this.#starts.sync();
  }

  /** Pads the last row, writes table and header, and gives the file its name. */
  finish(): ShardHeader {
    const { context, vocabSize, endOfText } = this.format;
    const width = bytesPerToken(vocabSize);
    const rows = Math.ceil(this.#tokens / (context + 1));
    const header = { ...this.format, bytesPerToken: width, rows, tokens: this.#tokens, documents: this.#documents };
    const pads = rows * (context + 1) - this.#tokens;
    this.#rows.append(tokenArray(vocabSize, pads).fill(endOfText) as Tokens);
    const unaligned = tableOffset(rows, context, width) - HEADER_BYTES - rows * (context + 1) * width;
    this.#rows.append(tokenArray(vocabSize, unaligned / width) as Tokens);
    this.#starts.sync();
    writing(this.#rows.path, () => {
      this.#rows.appendFile(this.#starts.path);
      this.#rows.overwrite(0, encodeHeader(header));
      this.#rows.sync();
      this[Symbol.dispose]();
      const { size } = Deno.statSync(this.#rows.path);
      if (size !== shardBytes(header)) throw new Error(`it has ${size} bytes, wanted ${shardBytes(header)}`);
      Deno.renameSync(this.#rows.path, this.path);
      Deno.removeSync(this.#starts.path);
    });
    return header;
  }

  [Symbol.dispose](): void {
    this.#rows[Symbol.dispose]();
    this.#starts[Symbol.dispose]();
  }
}

/** Makes a finished shard partial again: it was finished after the moment that is gone back to. */
function reopen(path: string, documents: number): void {
  if (!exists(path)) return;
  let starts: Uint32Array;
  {
    using shard = new Shard(path);
    starts = shard.starts.slice(0, documents);
  }
  writing(path, () => {
    Deno.writeFileSync(`${path}.starts`, new Uint8Array(starts.buffer, 0, starts.length * 4));
    Deno.renameSync(path, `${path}.partial`);
  });
}

function exists(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch {
    return false;
  }
}
