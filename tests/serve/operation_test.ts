/** How an app is run, without a port: keys, limits, time limits, draining, metrics, logs. */
import assert from "node:assert/strict";
import { Hono } from "hono";
import { limitRate } from "../../serve/access.ts";
import { Admission } from "../../serve/admission.ts";
import { type App, createApp } from "../../serve/app.ts";
import { RequestError, respond, toRequestError } from "../../serve/errors.ts";
import { createLog } from "../../serve/log.ts";
import type { OperationOptions } from "../../serve/operation.ts";
import { UnderWay } from "../../serve/record.ts";
import type { MockEngine, MockOptions } from "./mock_engine.ts";
import { mockEngine } from "./mock_engine.ts";
import { fits } from "./schemas.ts";
import { bytes, post, readEvents, saying, until } from "./serving.ts";

interface Run extends AsyncDisposable {
  readonly app: App;
  readonly engine: MockEngine;
  readonly lines: Record<string, unknown>[];
}

async function serve(options: OperationOptions, mock: MockOptions = saying("Hello")): Promise<Run> {
  const engine = mockEngine(mock);
  const lines: Record<string, unknown>[] = [];
  const log = createLog({ level: "info", format: "json", write: (line) => lines.push(JSON.parse(line)) });
  const app = await createApp({ model: { name: "mock", engine, tokenizer: bytes }, log, ...options });
  return { app, engine, lines, [Symbol.asyncDispose]: () => app[Symbol.asyncDispose]() };
}

const body = { model: "mock", prompt: "a" };

async function refusal(response: Response) {
  const body = await response.json();
  fits("Error", body);
  return { status: response.status, ...body.error };
}

const bearer = (key: string) => ({ headers: { "content-type": "application/json", authorization: `Bearer ${key}` } });

Deno.test("requests carry one of the keys, but for those about health and the page", async () => {
  await using run = await serve({ apiKeys: ["first-key", "second-key"] });
  for (const path of ["/health", "/ready", "/", "/page/style.css"]) {
    assert.equal((await run.app.request(path)).status, 200, path);
  }
  for (const path of ["/v1/models", "/metrics", "/openapi.json", "/v1/completions", "/nothing"]) {
    const response = await run.app.request(path);
    assert.match(response.headers.get("www-authenticate")!, /Bearer/);
    assert.deepEqual([(await refusal(response)).code, response.status], ["invalid_api_key", 401], path);
  }
  assert.equal((await post(run.app, body, bearer("second-key"))).status, 200);
  for (const key of ["first-keys", "first", "FIRST-KEY", "x".repeat(5000)]) {
    assert.equal((await refusal(await post(run.app, body, bearer(key)))).status, 401, key);
    assert.equal((await run.app.request("/health", bearer(key))).status, 401);
  }
  assert.equal(
    (await post(run.app, body, { headers: { ...bearer("").headers, authorization: "Basic Zmlyc3Q=" } })).status,
    401,
  );
  const keys = new Set(run.lines.map(({ key }) => key));
  assert.equal(keys.size, 2); // none, and the second's
  assert.ok(!JSON.stringify(run.lines).includes("second-key"));
});

Deno.test("other origins may ask only where they are named", async () => {
  const preflight = {
    method: "OPTIONS",
    headers: { origin: "https://a.example", "access-control-request-method": "POST" },
  };
  await using closed = await serve({});
  assert.equal(
    (await closed.app.request("/v1/completions", preflight)).headers.get("access-control-allow-origin"),
    null,
  );
  await using open = await serve({ corsOrigins: ["https://a.example"], apiKeys: ["key"] });
  const allowed = await open.app.request("/v1/completions", preflight);
  assert.deepEqual([allowed.status, allowed.headers.get("access-control-allow-origin")], [204, "https://a.example"]);
  const other = { ...preflight, headers: { ...preflight.headers, origin: "https://b.example" } };
  assert.equal((await open.app.request("/v1/completions", other)).headers.get("access-control-allow-origin"), null);
});

Deno.test("a key has so many requests a minute, refilled as time passes", async () => {
  await using run = await serve({ apiKeys: ["one", "two"], rateLimit: 3 });
  const statuses = async (key: string, count: number) =>
    await Promise.all(Array.from({ length: count }, async () => (await post(run.app, body, bearer(key))).status));
  assert.deepEqual(await statuses("one", 4), [200, 200, 200, 429]);
  assert.deepEqual(await statuses("two", 1), [200]);
  const refused = await post(run.app, body, bearer("one"));
  assert.match(refused.headers.get("retry-after")!, /^(19|20)$/);
  assert.equal((await refusal(refused)).code, "rate_limit_exceeded");
  assert.equal((await run.app.request("/v1/models", bearer("one"))).status, 200);
});

Deno.test("the bucket of a key fills at its rate and not past its size", async () => {
  let now = 0;
  const app = new Hono().use(new UnderWay(() => {}).keepRecords(), limitRate(60, () => now));
  app.onError((error, c) => respond(c, toRequestError(error)));
  const ask = async () => (await app.request("/", { method: "POST" })).status;
  const many = async (count: number) =>
    (await Promise.all(Array.from({ length: count }, ask))).filter((status) => status === 404).length;
  assert.equal(await many(70), 60);
  now += 5_000;
  assert.equal(await many(70), 5);
  now += 3_600_000;
  assert.equal(await many(70), 60);
});

Deno.test("what the queue doesn't hold is told when to come back, before anything is sent", async () => {
  await using run = await serve({ maxQueue: 2 }, { delay: 5 });
  const stream = { ...body, max_tokens: 20, stream: true };
  const responses = await Promise.all(Array.from({ length: 5 }, () => post(run.app, stream))); // one runs, two wait
  assert.deepEqual(responses.map(({ status }) => status), [200, 200, 200, 429, 429]);
  assert.match(responses[3].headers.get("retry-after")!, /^\d+$/);
  assert.equal((await refusal(responses[3])).code, "queue_full");
  for (const response of responses.slice(0, 3)) assert.equal(readEvents(await response.text()).at(-1), "[DONE]");
  assert.equal((await post(run.app, { ...body, n: 10 })).status, 200); // alone, any number
});

Deno.test("places come back however a request ends, once", () => {
  const admission = new Admission(1);
  const first = admission.enter("m", 2, 2);
  const second = admission.enter("m", 2, 1);
  assert.throws(() => admission.enter("m", 2, 1), (error) => error instanceof RequestError && error.status === 429);
  admission.enter("other", 2, 1);
  first[Symbol.dispose]();
  first[Symbol.dispose]();
  assert.equal(admission.count("m"), 1);
  second[Symbol.dispose]();
  assert.equal(admission.count("m"), 0);
});

Deno.test("an answer that takes too long is ended: 408, or an error event", async () => {
  await using run = await serve({ requestSeconds: 0.05 }, { delay: 10 });
  const long = { ...body, max_tokens: 100 };
  assert.equal((await refusal(await post(run.app, long))).status, 408);
  const events = readEvents(await (await post(run.app, { ...long, stream: true })).text());
  assert.equal(events.pop(), "[DONE]");
  assert.equal(JSON.parse(events.pop()!).error.code, "request_timeout");
  assert.ok(events.length > 0);
  await until(() => run.engine.calls.every(({ aborted }) => aborted));
});

Deno.test("a body that doesn't come is given up", async () => {
  await using run = await serve({ bodySeconds: 0.05 });
  const slow = new ReadableStream({ start: (controller) => controller.enqueue(new TextEncoder().encode('{"model"')) });
  const headers = { "content-type": "application/json" };
  const init = { method: "POST", headers, body: slow, duplex: "half" } as RequestInit;
  assert.equal((await refusal(await run.app.request("/v1/completions", init))).status, 408);
  const broken = new ReadableStream({ start: (controller) => controller.error(new Error("gone")) });
  const other = await run.app.request("/v1/completions", { ...init, body: broken });
  assert.equal((await refusal(other)).status, 400);
});

Deno.test("a draining app refuses new requests, finishes those under way, and ends the others in time", async () => {
  await using run = await serve({}, { delay: 4 });
  const short = await post(run.app, { ...body, max_tokens: 5, stream: true });
  const drained = run.app.drain(2);
  const refused = await post(run.app, body);
  assert.deepEqual([refused.headers.get("connection"), refused.headers.has("retry-after")], ["close", true]);
  assert.equal((await refusal(refused)).status, 503);
  for (const path of ["/health", "/ready"]) assert.equal((await run.app.request(path)).status, 503);
  assert.equal((await run.app.request("/metrics")).status, 200);
  const events = readEvents(await short.text());
  assert.equal(JSON.parse(events.at(-2)!).choices[0].finish_reason, "length");
  await drained;

  await using other = await serve({}, { delay: 4 });
  const long = await post(other.app, { ...body, max_tokens: 200, stream: true });
  const start = performance.now();
  await other.app.drain(0.05);
  assert.ok(performance.now() - start < 600);
  await other.app[Symbol.asyncDispose]();
  const last = readEvents(await long.text()).at(-2)!;
  assert.equal(JSON.parse(last).error.code, "model_unavailable");
  assert.deepEqual(other.lines.map(({ outcome, level }) => [outcome, level]), [["failed", "info"]]);
});

Deno.test("each request is one line with what it cost, and no word of its prompt", async () => {
  await using run = await serve({}, { ...saying("Hello"), delay: 1 });
  const headers = { "content-type": "application/json", "x-request-id": "client-7" };
  const response = await post(run.app, { ...body, prompt: "secret words", stream: true }, { headers });
  assert.equal(response.headers.get("x-request-id"), "client-7");
  assert.equal(run.lines.length, 0); // the answer has not ended
  await response.text();
  await post(run.app, { ...body, temperature: 9 }, { headers: { ...headers, "x-request-id": "a b\n" } });
  const [first, second] = run.lines;
  const { id, method, path, status, model, prompt_tokens, completion_tokens, finish } = first;
  assert.deepEqual(
    { id, method, path, status, model, prompt_tokens, completion_tokens, finish },
    {
      id: "client-7",
      method: "POST",
      path: "/v1/completions",
      status: 200,
      model: "mock",
      prompt_tokens: 12,
      completion_tokens: 6,
      finish: ["stop"],
    },
  );
  assert.deepEqual([second.status, second.level], [400, "info"]);
  assert.match(second.id as string, /^[0-9a-f-]{36}$/);
  assert.ok(!JSON.stringify(run.lines).includes("secret"));
  await using told = await serve({ logPrompts: true });
  await post(told.app, { ...body, prompt: "secret words" });
  assert.deepEqual(told.lines[0].prompts, ["secret words"]);
});

Deno.test("failures and clients that go are told apart", async () => {
  await using run = await serve({}, { delay: 2, fail: (index) => index === 3 ? new Error("no more") : undefined });
  await post(run.app, body);
  await (await post(run.app, { ...body, stream: true })).text();
  const gone = await post(run.app, { ...body, stream: true });
  const reader = gone.body!.getReader();
  await reader.read();
  await reader.cancel();
  await until(() => run.lines.length === 3);
  const leaving = new AbortController();
  const init = { headers: { "content-type": "application/json" }, signal: leaving.signal };
  const two = post(run.app, { ...body, prompt: ["a", "b"], max_tokens: 2 }, init).catch(() => {});
  await until(() => run.engine.calls.length === 5);
  leaving.abort();
  await two;
  await until(() => run.lines.length === 4);
  assert.deepEqual(run.lines.map(({ status, outcome, level }) => [status, outcome, level]), [
    [500, undefined, "error"],
    [200, "failed", "error"],
    [200, "cancelled", "info"],
    [200, "cancelled", "info"],
  ]);
  assert.match(run.lines[0].error as string, /no more/);
});

Deno.test("a text log can't be forged", () => {
  const lines: string[] = [];
  const now = () => new Date(0);
  createLog({ level: "info", format: "text", write: (line) => lines.push(line), now }).info("request", {
    path: "/a b\nx=1",
    ms: 3,
    none: undefined,
    finish: ["stop", "length"],
  });
  assert.deepEqual(lines, ['1970-01-01T00:00:00.000Z info request path="/a b\\nx=1" ms=3 finish=stop,length']);
  createLog({ level: "error", format: "text", write: () => assert.fail() }).info("request");
  createLog({ level: "off", format: "text", write: () => assert.fail() }).error("request");
});

Deno.test("metrics count requests, tokens, times and what the engine does", async () => {
  const stats = {
    running: 2,
    waiting: 1,
    blocks: 10,
    freeBlocks: 4,
    steps: 6,
    rows: 21,
    stepSizes: [1, 0, 5],
    reusedTokens: 32,
    preemptions: 3,
  };
  const engine = Object.assign(mockEngine({ ...saying("Hello"), delay: 1 }), { stats });
  await using app = await createApp({ model: { name: "mock", engine, tokenizer: bytes } });
  await (await post(app, { ...body, n: 2, stream: true })).text();
  await post(app, { ...body, temperature: 9 });
  await app.request("/secret-path-1", { method: "GET" });
  await app.request("/secret-path-2", { method: "BREW" });
  const response = await app.request("/metrics");
  assert.match(response.headers.get("content-type")!, /^text\/plain; version=0\.0\.4/);
  const text = await response.text();
  const value = (name: string) => {
    const line = text.split("\n").find((line) => line.startsWith(name + " "));
    assert.ok(line, `${name} in\n${text}`);
    return Number(line.slice(name.length));
  };
  const completions = 'method="POST",path="/v1/completions"';
  assert.equal(value(`wgpt_requests_total{${completions},outcome="200"}`), 1);
  assert.equal(value(`wgpt_requests_total{${completions},outcome="400"}`), 1);
  assert.equal(value('wgpt_requests_total{method="GET",path="other",outcome="404"}'), 1);
  assert.equal(value('wgpt_requests_total{method="other",path="other",outcome="404"}'), 1);
  assert.ok(!text.includes("secret"));
  assert.equal(value('wgpt_prompt_tokens_total{model="mock"}'), 1);
  assert.equal(value('wgpt_generated_tokens_total{model="mock"}'), 12);
  assert.equal(value('wgpt_time_to_first_token_seconds_count{model="mock"}'), 2);
  assert.equal(value('wgpt_time_per_output_token_seconds_count{model="mock"}'), 2);
  assert.equal(value("wgpt_requests_under_way"), 1); // this one
  assert.equal(value('wgpt_sequences_running{model="mock"}'), 2);
  assert.equal(value('wgpt_kv_blocks_used{model="mock"}'), 6);
  assert.equal(value('wgpt_prefix_tokens_reused_total{model="mock"}'), 32);
  const steps = ["1", "2", "4", "+Inf"].map((le) => value(`wgpt_step_rows_bucket{model="mock",le="${le}"}`));
  assert.deepEqual([steps, value('wgpt_step_rows_sum{model="mock"}')], [[1, 1, 6, 6], 21]);
  for (const line of text.split("\n")) {
    assert.match(line, /^(|# (HELP|TYPE) wgpt_\w+ .+|wgpt_\w+(\{(\w+="[^"]*",?)+\})? [\d.e+-]+)$/);
  }
});
