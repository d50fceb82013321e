/** Server-sent events of an answer: data as it comes, comments while nothing does, errors in their place. It knows no route. */
import type { Context } from "hono";
import { streamSSE } from "hono/streaming";
import { toRequestError } from "./errors.ts";
import type { RequestRecord } from "./record.ts";

export interface EventOptions {
  /** Milliseconds without an event after which a comment says that the connection lives. Default: 15 s. */
  readonly ping?: number;
  /** Told when the answer fails and when it ends. */
  readonly record?: RequestRecord;
}

/**
 * Streams events, each one line of JSON, and `[DONE]` after the last. What fails on the way is the last event but that.
 *
 * @param make starts the events; its signal is aborted when the client hangs up.
 */
export function sendEvents(
  c: Context,
  make: (hungUp: AbortSignal) => AsyncIterable<unknown>,
  { ping = 15_000, record }: EventOptions = {},
): Response {
  const hungUp = new AbortController();
  record?.stream();
  c.header("X-Accel-Buffering", "no"); // proxies must not collect events
  return streamSSE(c, async (stream) => {
    stream.onAbort(() => hungUp.abort());
    let silent = true;
    const pings = setInterval(() => {
      if (silent) stream.write(": ping\n\n");
      silent = true;
    }, ping);
    const send = (data: unknown) => (silent = false, stream.writeSSE({ data: JSON.stringify(data) }));
    try {
      for await (const event of make(hungUp.signal)) await send(event);
    } catch (error) {
      record?.fail(error);
      await send(toRequestError(error).body);
    } finally {
      clearInterval(pings);
      record?.end();
    }
    await stream.writeSSE({ data: "[DONE]" });
  });
}
