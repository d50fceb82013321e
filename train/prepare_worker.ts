/** A Worker of prepare: reads pieces and turns their documents into tokens. It doesn't know where they go. */
import { UserError } from "../model/errors.ts";
import { loadTokenizer, type Tokenizer } from "../model/tokenizer.ts";
import { sha256 } from "./prepare_bytes.ts";
import { BadData, type Watch } from "./prepare_parquet.ts";
import {
  documentsOf,
  type OpenSource,
  openSource,
  type Piece,
  placeOf,
  type ReadOptions,
  refusal,
} from "./prepare_pieces.ts";
import type { Source } from "./prepare_sources.ts";
import { tokenArray, type Tokens } from "./shards.ts";

export interface WorkerSetup extends ReadOptions {
  /** Folder of the tokenizer. */
  readonly tokenizer: string;
  readonly vocabSize: number;
  readonly endOfText: number;
  readonly skipBad: boolean;
}

export interface Job {
  readonly piece: Piece;
  readonly source: Source;
  /** Wanted for a local file, once. */
  readonly hash: boolean;
}

/** The documents of a piece, one after another. */
export interface TokenizedPiece {
  /** Each document begins with end-of-text. */
  readonly tokens: Tokens;
  /** Tokens of each document. */
  readonly lengths: Uint32Array<ArrayBuffer>;
  /** Bytes of text of each document. */
  readonly textBytes: Uint32Array<ArrayBuffer>;
  /** What was left out, and whether it was the whole piece. */
  readonly bad: readonly string[];
  readonly badPiece: boolean;
  readonly sha256?: string;
}

export type Answer = { readonly decoding: boolean } | { readonly piece: TokenizedPiece } | {
  readonly failed: string;
  readonly exitCode: number;
};

const OPEN_SOURCES = 4;

/** Makes what turns jobs into tokens. */
async function createPieceReader(setup: WorkerSetup, watch: Watch): Promise<(job: Job) => Promise<TokenizedPiece>> {
  const tokenizer = await loadTokenizer(setup.tokenizer);
  const open = new Map<string, OpenSource>();
  return async ({ piece, source, hash }) => {
    const key = JSON.stringify(source.location);
    if (!open.has(key) && open.size === OPEN_SOURCES) {
      const [oldest, { bytes }] = open.entries().next().value!;
      bytes[Symbol.dispose]();
      open.delete(oldest);
    }
    const result = new Collector(setup, tokenizer);
    try {
      if (!open.has(key)) open.set(key, await openSource(source, setup, watch));
      for await (const found of documentsOf(open.get(key)!, piece, setup)) {
        if ("text" in found) result.add(found.text, found.bytes);
        else if (setup.skipBad) result.bad.push(`${placeOf(source, piece)}: ${found.bad}`);
        else throw new BadData(found.bad);
      }
    } catch (error) {
      if (!(error instanceof BadData)) throw error;
      if (!setup.skipBad) throw refusal(source, piece, error.message);
      result.clear(`${placeOf(source, piece)}: ${error.message}`);
    }
    const digest = hash && source.location.kind === "file" ? sha256(source.location.path) : undefined;
    return result.done(digest);
  };
}

class Collector {
  #tokens: Tokens;
  #count = 0;
  #lengths: number[] = [];
  #textBytes: number[] = [];
  #badPiece = false;
  bad: string[] = [];

  constructor(readonly setup: WorkerSetup, readonly tokenizer: Tokenizer) {
    this.#tokens = tokenArray(setup.vocabSize, 1 << 16);
  }

  add(text: string, bytes: number): void {
    const tokens = this.tokenizer.encode(text);
    const end = this.#count + 1 + tokens.length;
    if (end > this.#tokens.length) {
      const grown = tokenArray(this.setup.vocabSize, Math.max(end, 2 * this.#tokens.length));
      grown.set(this.#tokens.subarray(0, this.#count));
      this.#tokens = grown;
    }
    this.#tokens[this.#count] = this.setup.endOfText;
    this.#tokens.set(tokens, this.#count + 1);
    this.#count = end;
    this.#lengths.push(tokens.length + 1);
    this.#textBytes.push(bytes);
  }

  /** Forgets everything: the piece as a whole is bad. */
  clear(reason: string): void {
    this.#count = 0;
    [this.#lengths, this.#textBytes, this.bad, this.#badPiece] = [[], [], [reason], true];
  }

  done(digest: string | undefined): TokenizedPiece {
    return {
      tokens: this.#tokens.slice(0, this.#count) as Tokens,
      lengths: Uint32Array.from(this.#lengths),
      textBytes: Uint32Array.from(this.#textBytes),
      bad: this.bad,
      badPiece: this.#badPiece,
      sha256: digest,
    };
  }
}

/** Answers messages: the setup first, then jobs, one at a time. */
function serve(scope: typeof globalThis & { postMessage?: (message: Answer, transfer: Transferable[]) => void }): void {
  // A Parquet reader's second failure may come after its call has failed and must not end the process.
  scope.addEventListener("unhandledrejection", (event) => event.preventDefault());
  let reader: ReturnType<typeof createPieceReader> | undefined;
  scope.addEventListener("message", async (event) => {
    const { data } = event as MessageEvent<WorkerSetup | Job>;
    if (reader === undefined) {
      reader = createPieceReader(data as WorkerSetup, (decoding) => scope.postMessage!({ decoding }, []));
      return reader.catch(() => {}); // told with the first job
    }
    try {
      const piece = await (await reader)(data as Job);
      scope.postMessage!({ piece }, [piece.tokens.buffer, piece.lengths.buffer, piece.textBytes.buffer]);
    } catch (error) {
      const { message } = error as Error;
      const user = error instanceof UserError;
      const failed = user ? message : `Cannot prepare ${(data as Job).source.path}: ${message}`;
      scope.postMessage!({ failed, exitCode: user ? error.exitCode : 1 }, []);
    }
  });
}

if ("WorkerGlobalScope" in globalThis) serve(globalThis);
