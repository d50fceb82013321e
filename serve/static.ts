/** Files of a page over HTTP: revalidated by ETag, under a strict content security policy. It knows no page. */
import { createHash } from "node:crypto";
import type { Context, Hono } from "hono";

const types: Readonly<Record<string, string>> = {
  html: "text/html; charset=utf-8",
  css: "text/css; charset=utf-8",
  js: "text/javascript; charset=utf-8",
  svg: "image/svg+xml",
};

/** Everything comes from this server, nothing is inline, and text never becomes markup or code. */
const policy = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self'",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
  "require-trusted-types-for 'script'",
  "trusted-types 'none'",
].join("; ");

/** Texts of files by name; of what kind a file is its name's ending says. */
export type Files = Readonly<Record<string, string>>;

/** Adds a page: `index` at `/`, the others under `/page/`. */
export function addFiles(app: Pick<Hono, "get">, index: string, files: Files): void {
  for (const [name, text] of Object.entries(files)) {
    app.get(name === index ? "/" : `/page/${name}`, createAnswer(name, text));
  }
}

function createAnswer(name: string, text: string): (c: Context) => Response {
  const etag = `"${createHash("sha256").update(text).digest("hex").slice(0, 24)}"`;
  const headers = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": policy,
    "Content-Type": types[name.split(".").at(-1)!],
    "Cross-Origin-Opener-Policy": "same-origin",
    ETag: etag,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
  };
  return (c) => {
    const known = (c.req.header("If-None-Match") ?? "").split(",").map((tag) => tag.trim().replace(/^W\//, ""));
    return known.includes(etag) ? c.body(null, 304, headers) : c.body(text, 200, headers);
  };
}
