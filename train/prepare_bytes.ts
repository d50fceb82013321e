/** Bytes of a source by range: a local file, a URL, a file on the Hugging Face Hub. It doesn't know what they mean. */
import { createHash } from "node:crypto";
import { UserError } from "../model/errors.ts";
import { explainIo } from "../model/files.ts";

export type Location =
  | { readonly kind: "file"; readonly path: string }
  | { readonly kind: "url"; readonly url: string }
  | {
    readonly kind: "hub";
    readonly repo: string;
    readonly revision: string;
    readonly path: string;
    readonly hubUrl?: string;
    readonly accessToken?: string;
  };

/** What tells one version of a source from another: its size and, from a server, its entity tag or the like. */
export interface Version {
  readonly bytes: number;
  readonly tag?: string;
}

export interface ByteSource extends Disposable {
  readonly version: Version;
  /** Bytes `from` up to `to`, all of them. @throws UserError where they can't be had. */
  slice(from: number, to: number): Promise<ArrayBuffer>;
}

const TRIES = 5;
const RETRIED = [408, 425, 429, 500, 502, 503, 504];
const HASH_BYTES = 1 << 20;

/** Opens a source. Where its version is known already, no server is asked for it again. */
export function openBytes(location: Location, known?: Version): Promise<ByteSource> {
  if (location.kind === "file") return openFile(location.path, known);
  return location.kind === "url" ? openUrl(location.url, known) : openHub(location);
}

async function openFile(path: string, known?: Version): Promise<ByteSource> {
  const reading = async <T>(action: () => Promise<T>): Promise<T> => {
    try {
      return await action();
    } catch (error) {
      throw explainIo("read", path, error);
    }
  };
  const file = await reading(() => Deno.open(path, { read: true }));
  const version = { bytes: (await reading(() => file.stat())).size };
  if (known && known.bytes !== version.bytes) {
    file.close();
    throw new UserError(
      `Cannot go on with ${path}: it changed from ${known.bytes} to ${version.bytes} bytes meanwhile`,
    );
  }
  return {
    version,
    slice: (from, to) =>
      reading(async () => {
        const bytes = new Uint8Array(to - from);
        await file.seek(from, Deno.SeekMode.Start);
        for (let done = 0; done < bytes.length;) {
          const count = await file.read(bytes.subarray(done));
          if (count === null) throw new UserError(`Cannot read ${path}: it ends at byte ${from + done}, wanted ${to}`);
          done += count;
        }
        return bytes.buffer;
      }),
    [Symbol.dispose]: () => file.close(),
  };
}

async function openUrl(url: string, known?: Version): Promise<ByteSource> {
  const version = known ?? await probe(url);
  return {
    version,
    async slice(from, to) {
      if (to === from) return new ArrayBuffer(0);
      const response = await retryingFetch(url, { headers: { range: `bytes=${from}-${to - 1}` } });
      if (response.status !== 206) throw noRanges(url, response);
      if (version.tag !== undefined && tagOf(response) !== version.tag) {
        throw new UserError(`Cannot go on with ${url}: it changed from ${version.tag} to ${tagOf(response)} meanwhile`);
      }
      return whole(await response.arrayBuffer(), to - from, url);
    },
    [Symbol.dispose]() {},
  };
}

async function probe(url: string): Promise<Version> {
  const response = await retryingFetch(url, { headers: { range: "bytes=0-0" } });
  const size = /\/(\d+)$/.exec(response.headers.get("content-range") ?? "")?.[1];
  if (response.status === 416 && size === "0") return { bytes: 0, tag: tagOf(response) };
  if (response.status !== 206 || size === undefined) throw noRanges(url, response);
  return { bytes: Number(size), tag: tagOf(response) };
}

function tagOf({ headers }: Response): string | undefined {
  return headers.get("etag") ?? headers.get("last-modified") ?? undefined;
}

function noRanges(url: string, { status }: Response): UserError {
  if (status !== 200) return new UserError(`Cannot read ${url}: the server answers ${status}`);
  return new UserError(`Cannot read ${url} by ranges: its server sends it whole; download it and give its path`);
}

async function openHub({ repo, revision, path, hubUrl, accessToken }: Location & { kind: "hub" }): Promise<ByteSource> {
  const { downloadFile } = await import("@huggingface/hub");
  const name = `hf:${repo}/${path}`;
  const asking = async <T>(action: () => Promise<T>): Promise<T> => {
    try {
      return await action();
    } catch (error) {
      throw hubError(name, error);
    }
  };
  const blob = await asking(() =>
    downloadFile({
      repo: { type: "dataset", name: repo },
      path,
      revision,
      hubUrl,
      accessToken,
      fetch: retryingFetch as typeof fetch,
      xet: false,
    })
  );
  if (blob === null) throw new UserError(`Cannot read ${name}: revision ${revision} has no such file`);
  return {
    version: { bytes: blob.size },
    slice: (from, to) =>
      asking(async () =>
        from === to ? new ArrayBuffer(0) : whole(await blob.slice(from, to).arrayBuffer(), to - from, name)
      ),
    [Symbol.dispose]() {},
  };
}

/** What the Hub refused, with the step to take. */
export function hubError(name: string, error: unknown): UserError {
  if (error instanceof UserError) return error;
  const { message, statusCode } = error as { message: string; statusCode?: number };
  const next = statusCode === 401 || statusCode === 403
    ? "; set HF_TOKEN to a token that may read it"
    : statusCode === 404
    ? "; check the name, and HF_TOKEN if it is private"
    : "";
  return new UserError(`Cannot read ${name}: ${message.replaceAll("\n", " ")}${next}`);
}

function whole(bytes: ArrayBuffer, wanted: number, name: string): ArrayBuffer {
  if (bytes.byteLength === wanted) return bytes;
  throw new UserError(`Cannot read ${name}: its server sent ${bytes.byteLength} bytes, wanted ${wanted}`);
}

/** fetch() that reads the whole answer and tries again, later each time, where the network or the server fails. */
export async function retryingFetch(input: string | URL, init?: RequestInit): Promise<Response> {
  for (let tried = 1;; tried++) {
    let wait = 250 * 2 ** tried;
    try {
      const response = await fetch(input, init);
      // A server that ignores the range would send everything.
      const unasked = response.status === 200 && new Headers(init?.headers).has("range");
      if (unasked) await response.body?.cancel();
      const body = unasked ? null : await response.arrayBuffer();
      if (!RETRIED.includes(response.status) || tried === TRIES) return new Response(body, response);
      wait = Math.min(60, Number(response.headers.get("retry-after")) || 0) * 1000 || wait;
    } catch (error) {
      if (tried === TRIES) {
        throw new UserError(`Cannot read ${input}: ${(error as Error).message.split("\n")[0]} (tried ${TRIES} times)`);
      }
    }
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

/** SHA-256 of a local file, hexadecimal. */
export function sha256(path: string): string {
  const hash = createHash("sha256");
  const part = new Uint8Array(HASH_BYTES);
  try {
    using file = Deno.openSync(path, { read: true });
    for (let count = file.readSync(part); count !== null; count = file.readSync(part)) {
      hash.update(part.subarray(0, count));
    }
  } catch (error) {
    throw explainIo("read", path, error);
  }
  return hash.digest("hex");
}
