/** Server-sent events: data as it comes, comments while nothing does, errors in their place. It knows no route. */
import type { Context } from "hono";
import { type SSEMessage, streamSSE } from "hono/streaming";
import { toRequestError } from "./errors.ts";
import type { RequestRecord } from "./record.ts";

/** What writes a stream: sends events until it returns; `hungUp` is aborted when the client goes. */
export type WriteEvents = (send: (event: SSEMessage) => Promise<void>, hungUp: AbortSignal) => Promise<void>;

/**
 * Streams events.
 *
 * @param ping milliseconds without an event after which a comment says that the connection lives.
 */
export function streamEvents(c: Context, ping: number, write: WriteEvents): Response {
  const hungUp = new AbortController();
  c.header("X-Accel-Buffering", "no"); // proxies must not collect events
  return streamSSE(c, async (stream) => {
    stream.onAbort(() => hungUp.abort());
    let silent = true;
    const pings = setInterval(() => {
      if (silent) stream.write(": ping\n\n");
      silent = true;
    }, ping);
    try {
      await write((event) => (silent = false, stream.writeSSE(event)), hungUp.signal);
    } finally {
      clearInterval(pings);
    }
  });
}

export interface EventOptions {
  /** Milliseconds without an event after which a comment says that the connection lives. Default: 15 s. */
  readonly ping?: number;
  /** Told when the answer fails and when it ends. */
  readonly record?: RequestRecord;
}

/**
 * Streams an answer's events, each one line of JSON, and `[DONE]` after the last. What fails on the way is the last event but that.
 *
 * @param make starts the events; its signal is aborted when the client hangs up.
 */
export function sendEvents(
  c: Context,
  make: (hungUp: AbortSignal) => AsyncIterable<unknown>,
  { ping = 15_000, record }: EventOptions = {},
): Response {
  if (record) record.streaming = true;
  return streamEvents(c, ping, async (send, hungUp) => {
    const sendJson = (data: unknown) => send({ data: JSON.stringify(data) });
    try {
      for await (const event of make(hungUp)) await sendJson(event);
    } catch (error) {
      if (record) record.failure = error;
      await sendJson(toRequestError(error).body);
    } finally {
      record?.end();
    }
    await send({ data: "[DONE]" });
  });
}
