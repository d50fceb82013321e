/** Events on the wire: data, comments while nothing comes, errors in their place, and the end. */
import assert from "node:assert/strict";
import { Hono } from "hono";
import { setTimeout as delay } from "node:timers/promises";
import { RequestError } from "../../serve/errors.ts";
import { sendEvents } from "../../serve/events.ts";
import { until } from "./serving.ts";

function serveEvents(make: (hungUp: AbortSignal) => AsyncIterable<unknown>, ping?: number) {
  return new Hono().get("/", (c) => sendEvents(c, make, { ping })).request("/");
}

Deno.test("comments keep a silent connection alive, and stop where events come", async () => {
  const response = await serveEvents(async function* () {
    await delay(100);
    for (let i = 0; i < 3; i++) {
      yield i;
      await delay(1);
    }
  }, 20);
  assert.equal(response.headers.get("x-accel-buffering"), "no");
  const text = await response.text();
  assert.match(text, /^(: ping\n\n)+data: 0\n\ndata: 1\n\ndata: 2\n\ndata: \[DONE\]\n\n$/);
});

Deno.test("what fails is the last event before the end", async () => {
  const response = await serveEvents(async function* () {
    yield 1;
    throw new RequestError(503, "Gone", null, "model_unavailable");
  });
  const [first, error, done] = (await response.text()).split("\n\n");
  assert.deepEqual([first, done], ["data: 1", "data: [DONE]"]);
  assert.equal(JSON.parse(error.slice(6)).error.message, "Gone");
});

Deno.test("a reader that goes aborts the events", async () => {
  let ended = false;
  const response = await serveEvents(async function* (hungUp) {
    while (!hungUp.aborted) {
      yield 1;
      await delay(1);
    }
    ended = true;
  });
  const reader = response.body!.getReader();
  await reader.read();
  await reader.cancel();
  await until(() => ended);
});
