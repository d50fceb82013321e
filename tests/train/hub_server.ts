/** A stand-in for the Hugging Face Hub on this machine: datasets with files, configurations and tokens, and bad days. */

export interface StandIn extends AsyncDisposable {
  readonly url: string;
  /** Requests so far, as "path range". */
  readonly requests: string[];
}

export interface StandInOptions {
  /** Files of the dataset owner/data by path. */
  readonly files: Readonly<Record<string, Uint8Array>>;
  readonly cardData?: unknown;
  /** Token without which nothing is told. */
  readonly token?: string;
  /** Of so many requests each, one fails. */
  readonly failEvery?: number;
  /** Entries on a page of the listing. */
  readonly page?: number;
  /** Answer with whole files. */
  readonly noRanges?: boolean;
  /** Changes all the time. */
  readonly unstable?: boolean;
}

export const SHA = "0123456789abcdef0123456789abcdef01234567";

export function standIn(options: StandInOptions): StandIn {
  const requests: string[] = [];
  const server = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, (request) => {
    const url = new URL(request.url);
    requests.push(`${decodeURIComponent(url.pathname)} ${request.headers.get("range") ?? ""}`.trim());
    if (options.failEvery && requests.length % options.failEvery === 0) {
      return new Response("busy", { status: 503, headers: { "retry-after": "0.01" } });
    }
    if (options.token && request.headers.get("authorization") !== `Bearer ${options.token}`) {
      return Response.json({ error: "Repository not found" }, { status: 401 });
    }
    return answer(request, url, options, requests.length);
  });
  return {
    url: `http://127.0.0.1:${server.addr.port}`,
    requests,
    [Symbol.asyncDispose]: () => server.shutdown(),
  };
}

function answer(request: Request, url: URL, options: StandInOptions, count: number): Response {
  const { files, cardData, page = 1000 } = options;
  const path = decodeURIComponent(url.pathname);
  if (path.startsWith("/api/datasets/owner/data/revision/")) {
    const known = ["HEAD", "v1", SHA].includes(path.split("/").at(-1)!);
    if (!known) return Response.json({ error: "Invalid rev id" }, { status: 404 });
    return Response.json({ _id: "1", id: "owner/data", sha: SHA, cardData, lastModified: "2024-01-01T00:00:00Z" });
  }
  if (path === `/api/datasets/owner/data/tree/${SHA}`) {
    const names = Object.keys(files);
    const from = Number(url.searchParams.get("cursor") ?? 0);
    const entries = names.slice(from, from + page).map((path) => ({
      type: "file",
      path,
      size: files[path].length,
      oid: "git",
    }));
    url.searchParams.set("cursor", String(from + page));
    const headers = from + page < names.length ? { link: `<${url.href}>; rel="next"` } : undefined;
    return Response.json(entries, { headers });
  }
  const file = files[path.replace(new RegExp(`^/datasets/owner/data/resolve/${SHA}/|^/`), "")];
  if (!file) return Response.json({ error: "Repository not found" }, { status: 404 });
  return ranged(request, file, options.unstable ? `"${count}"` : '"same"', options.noRanges ?? false);
}

function ranged(request: Request, file: Uint8Array, etag: string, whole: boolean): Response {
  const match = /^bytes=(\d+)-(\d*)$/.exec(request.headers.get("range") ?? "");
  if (!match || whole) return new Response(file.slice(), { headers: { etag } });
  const from = Number(match[1]);
  const to = Math.min(file.length, match[2] === "" ? file.length : Number(match[2]) + 1);
  if (from >= file.length) {
    return new Response(null, { status: 416, headers: { "content-range": `bytes */${file.length}` } });
  }
  const headers = { etag, "content-range": `bytes ${from}-${to - 1}/${file.length}` };
  return new Response(file.slice(from, to), { status: 206, headers });
}
