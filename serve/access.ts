/** Who may ask, and how often: API keys and a limit of requests a minute. It knows no route but by its path. */
import type { Buffer } from "node:buffer";
import { createHash, timingSafeEqual } from "node:crypto";
import type { Context, MiddlewareHandler } from "hono";
import { RequestError } from "./errors.ts";
import { recordOf } from "./record.ts";

/** Asked by load balancers and browsers, which have no key; they tell nothing that a key protects. */
const OPEN = new Set(["/health", "/ready", "/", "/favicon.ico"]);
const isOpen = (path: string) => OPEN.has(path) || path.startsWith("/page/");

const digest = (text: string) => createHash("sha256").update(text).digest();

/** Enough of a key's hash to tell keys apart in a log, too little to find the key. */
export const fingerprint = (key: string) => digest(key).toString("hex").slice(0, 8);

/**
 * Lets requests with one of these keys pass, as `Authorization: Bearer KEY`. Hashes are compared, all of them and each in
 * constant time, so that neither a key's beginning nor its length shows in the time taken.
 */
export function requireKey(keys: readonly string[]): MiddlewareHandler {
  const known = keys.map(digest);
  return async (c, next) => {
    const given = /^Bearer +(\S+)\s*$/i.exec(c.req.header("authorization") ?? "")?.[1];
    if (given === undefined ? !isOpen(c.req.path) : !matches(known, digest(given))) {
      const message = given === undefined
        ? "Send an API key as authorization: Bearer KEY"
        : "Send another API key: this one isn't known";
      throw new RequestError(401, message, null, "invalid_api_key", { "WWW-Authenticate": "Bearer" });
    }
    if (given !== undefined) recordOf(c).key = fingerprint(given);
    await next();
  };
}

function matches(known: readonly Buffer[], given: Buffer): boolean {
  return known.map((key) => timingSafeEqual(key, given)).includes(true);
}

interface Bucket {
  requests: number;
  at: number;
}

/** Buckets kept; the ones not used for longest are forgotten, which makes them full again. */
const BUCKETS = 10_000;

/**
 * Lets each key, or each address where there are none, make so many POST requests a minute, that many at once: a token
 * bucket.
 *
 * @param now milliseconds.
 */
export function limitRate(aMinute: number, now: () => number = () => performance.now()): MiddlewareHandler {
  const buckets = new Map<string, Bucket>();
  return async (c, next) => {
    if (c.req.method !== "POST") return await next();
    const who = recordOf(c).key ?? addressOf(c);
    const { requests, at } = buckets.get(who) ?? { requests: aMinute, at: now() };
    const left = Math.min(aMinute, requests + (now() - at) / 60_000 * aMinute);
    buckets.delete(who);
    buckets.set(who, { requests: left >= 1 ? left - 1 : left, at: now() });
    if (buckets.size > BUCKETS) buckets.delete(buckets.keys().next().value!);
    if (left < 1) {
      const seconds = Math.max(1, Math.ceil((1 - left) / aMinute * 60));
      throw new RequestError(
        429,
        `Try again in ${seconds} s: ${aMinute} requests a minute are allowed`,
        null,
        "rate_limit_exceeded",
        {
          "Retry-After": String(seconds),
        },
      );
    }
    await next();
  };
}

/** The client's address, as far as the server knows it. */
function addressOf(c: Context): string {
  return (c.env as Partial<Deno.ServeHandlerInfo<Deno.NetAddr>> | undefined)?.remoteAddr?.hostname ?? "";
}
