/** The HTTP routes without a port: forms, status codes, refusals, clients that hang up. */
import assert from "node:assert/strict";
import type { App } from "../../serve/app.ts";
import { fits } from "./schemas.ts";
import { complete, post, readEvents, saying, serveMock, stream, until } from "./serving.ts";

interface Refusal {
  readonly status: number;
  readonly message: string;
  readonly type: string;
  readonly param: string | null;
  readonly code: string | null;
}

/** The error a response carries, its form checked. */
async function refusal(response: Response): Promise<Refusal> {
  const body = await response.json();
  fits("Error", body);
  assert.doesNotMatch(body.error.message, /\.$|\n|Invalid input/);
  return { status: response.status, ...body.error };
}

const refused = async (app: App, fields: Record<string, unknown>) =>
  await refusal(await post(app, { model: "mock", prompt: "a", ...fields }));

Deno.test("answers have OpenAI's form", async () => {
  await using mock = await serveMock(saying("Hello"));
  fits("Completion", await complete(mock.app, { prompt: "a" }));
  fits("Completion", await complete(mock.app, { prompt: "a", logprobs: 3, n: 2, echo: true }));
  for (const event of await stream(mock.app, { prompt: "a", logprobs: 3, stream_options: { include_usage: true } })) {
    fits("CompletionEvent", event);
  }
});

Deno.test("models are listed and shown", async () => {
  await using mock = await serveMock({}, { name: "org/name 1" });
  const list = await (await mock.app.request("/v1/models")).json();
  fits("ModelList", list);
  assert.deepEqual(list.data.map((model: { id: string }) => model.id), ["org/name 1"]);
  const one = await mock.app.request("/v1/models/org%2Fname%201");
  assert.equal(one.status, 200);
  assert.deepEqual(await one.json(), list.data[0]);
  assert.equal((await mock.app.request("/v1/models/org/name%201")).status, 200);
  const other = await refusal(await mock.app.request("/v1/models/other"));
  assert.deepEqual([other.status, other.code], [404, "model_not_found"]);
});

Deno.test("the OpenAPI document describes the routes", async () => {
  await using mock = await serveMock();
  const document = await (await mock.app.request("/openapi.json")).json();
  const described = new Set(Object.keys(document.paths));
  const routes = mock.app.routes.filter(({ method }) => method !== "ALL").map(({ path }) => path);
  const pages = /^\/$|^\/page\/|^\/openapi\.json$/;
  const paths = routes.filter((path) => !pages.test(path) && !path.endsWith("{.+}"));
  assert.deepEqual(described, new Set(paths.map((path) => path.replace(/:(\w+)/, "{$1}"))));
  assert.ok(described.has("/v1/completions"));
  const { properties, required } = document.components.schemas.CompletionRequest;
  assert.deepEqual(required, ["model", "prompt"]);
  assert.equal(properties.max_tokens.default, 16);
});

Deno.test("health follows the engine", async () => {
  let healthy = true;
  const mock = await serveMock({}, { healthy: () => healthy });
  const status = async () => (await mock.app.request("/health")).status;
  assert.equal(await status(), 200);
  healthy = false;
  assert.equal(await status(), 503);
  const while503 = await refused(mock.app, {});
  assert.deepEqual([while503.status, while503.type], [503, "server_error"]);
  healthy = true;
  assert.equal(await status(), 200);
  await mock[Symbol.asyncDispose]();
  assert.equal(await status(), 503);
  assert.equal((await refused(mock.app, {})).status, 503);
  assert.equal(mock.engine.disposed, false); // it was given, and stays its owner's
});

Deno.test("unknown models are 404, unknown paths too, wrong methods 405", async () => {
  await using mock = await serveMock();
  const other = await refused(mock.app, { model: "gpt-4" });
  assert.deepEqual([other.status, other.param, other.code], [404, "model", "model_not_found"]);
  assert.equal((await refusal(await mock.app.request("/v1/embeddings"))).status, 404);
  for (
    const [method, path, allow] of [["GET", "/v1/completions", "POST"], ["DELETE", "/v1/models", "GET"], [
      "POST",
      "/health",
      "GET",
    ]]
  ) {
    const response = await mock.app.request(path, { method });
    assert.equal(response.headers.get("allow"), allow);
    assert.equal((await refusal(response)).status, 405);
  }
});

Deno.test("bodies must be JSON, said to be JSON, and not too large", async () => {
  await using mock = await serveMock();
  const plain = { headers: { "content-type": "text/plain" } };
  assert.equal((await refusal(await post(mock.app, { model: "mock" }, plain))).status, 415);
  const form = { headers: { "content-type": "application/x-www-form-urlencoded" } };
  assert.equal((await refusal(await post(mock.app, { model: "mock" }, form))).status, 415);
  assert.equal((await refusal(await post(mock.app, "{}", { headers: {} }))).status, 415);
  for (const body of ["", "{", "nul", "{'a': 1}", "\u0000"]) {
    assert.equal((await refusal(await post(mock.app, body))).status, 400, body);
  }
  for (const body of ["null", "[]", "7", '"text"']) {
    const { status, param } = await refusal(await post(mock.app, body));
    assert.deepEqual([status, param], [400, null], body);
  }
  const long = { model: "mock", prompt: "x".repeat(5 * 2 ** 20) };
  const { status, code } = await refusal(await post(mock.app, long));
  assert.deepEqual([status, code], [413, "body_too_large"]);
  const announced = { headers: { "content-type": "application/json", "content-length": String(2 ** 40) } };
  assert.equal((await refusal(await post(mock.app, "{}", announced))).status, 413);
  const charset = { headers: { "content-type": "application/json; charset=utf-8" } };
  assert.equal((await post(mock.app, { model: "mock", prompt: "a" }, charset)).status, 200);
});

Deno.test("wrong types and ranges are named", async () => {
  await using mock = await serveMock();
  const wrong: Record<string, unknown[]> = {
    model: [null, 7, undefined],
    prompt: [undefined, 7, {}, [], [[]], ["a", 7], [7, "a"], [-1], [1.5], [[1], []], [[1], ["a"]], true],
    max_tokens: [-1, 1.5, "16", true, [], 1e300],
    temperature: [-0.1, 2.1, "1", {}],
    top_p: [-0.1, 1.1, "1"],
    top_k: [-2, 1.5, "1"],
    min_p: [-0.1, 1.1],
    n: [0, 129, 1.5, "2"],
    best_of: [2, 1.5, "1"],
    suffix: ["end", 7],
    stop: ["", [], [""], ["a", "b", "c", "d", "e"], 7, [7], {}],
    seed: [1.5, "7", 1e30],
    echo: ["true", 1],
    logprobs: [-1, 6, true, 1.5],
    presence_penalty: [-2.1, 2.1, "0"],
    frequency_penalty: [-2.1, 2.1, []],
    repetition_penalty: [0, -1, 11, "1"],
    logit_bias: [[], 7, { a: 1 }, { "1.5": 1 }, { "-1": 1 }, { "01": 1 }, { "1": "x" }, { "1": 101 }, { "257": 1 }],
    stop_token_ids: [7, ["a"], [-1], [1.5], [257], Array(65).fill(1)],
    ignore_eos: ["true", 1],
    min_tokens: [-1, 1.5, "1", 17],
    prompt_logprobs: [-1, 6, true],
    stream: ["true", 1],
    user: [7],
  };
  for (const [param, values] of Object.entries(wrong)) {
    for (const value of values) {
      const refusal = await refused(mock.app, { [param]: value });
      assert.deepEqual(
        [refusal.status, refusal.type],
        [400, "invalid_request_error"],
        `${param} ${JSON.stringify(value)}`,
      );
      assert.equal(refusal.param, param);
      assert.match(refusal.message, new RegExp(param));
    }
  }
  assert.equal(
    (await refused(mock.app, { stream: true, stream_options: { include_usage: 1 } })).param,
    "stream_options.include_usage",
  );
  assert.equal((await refused(mock.app, { stream_options: { include_usage: true } })).param, "stream_options");
  assert.equal((await refused(mock.app, { stream: true, prompt_logprobs: 1 })).param, "prompt_logprobs");
  assert.equal(mock.engine.calls.length, 0);
  const message = (await refused(mock.app, { temperature: 3 })).message;
  assert.equal(message, "Set temperature to a number from 0 to 2, not 3");
  assert.equal((await refused(mock.app, { prompt: undefined })).message, "Give prompt: it is missing");
});

Deno.test("what doesn't fit the model is refused", async () => {
  await using mock = await serveMock({ contextLength: 10 });
  const long = await refused(mock.app, { prompt: "12345", max_tokens: 6 });
  assert.deepEqual([long.status, long.param, long.code], [400, "max_tokens", "context_length_exceeded"]);
  assert.match(long.message, /5 prompt tokens.* 6 .*11.* 10$/);
  assert.equal((await post(mock.app, { model: "mock", prompt: "12345", max_tokens: 5 })).status, 200);
  assert.equal((await refused(mock.app, { prompt: "12345678901", max_tokens: 0 })).code, "context_length_exceeded");
  assert.equal((await refused(mock.app, { prompt: "a" })).code, "context_length_exceeded"); // 16 by default
  const outside = await refused(mock.app, { prompt: [[1], [2, 257]], max_tokens: 1 });
  assert.deepEqual([outside.status, outside.param], [400, "prompt"]);
  assert.equal(outside.message, "Use token ids from 0 to 256 in prompt: 257 is none");
  const many = await refused(mock.app, { prompt: Array(100).fill("a"), n: 100, max_tokens: 1 });
  assert.deepEqual([many.status, many.param], [400, "n"]);
});

Deno.test("unknown fields are passed over", async () => {
  await using mock = await serveMock();
  assert.equal((await post(mock.app, { model: "mock", prompt: "a", metadata: {}, __proto__x: 1 })).status, 200);
});

Deno.test("an engine that fails answers 500 whole, and an error event in a stream", async () => {
  await using mock = await serveMock({ fail: (index) => index === 2 ? new Error("no more") : undefined });
  const log = console.error;
  console.error = () => {};
  try {
    const failed = await refused(mock.app, {});
    assert.deepEqual([failed.status, failed.type, failed.code], [500, "server_error", "engine_error"]);
    const response = await post(mock.app, { model: "mock", prompt: "a", stream: true });
    const events = readEvents(await response.text());
    assert.equal(events.pop(), "[DONE]");
    fits("Error", JSON.parse(events.pop()!));
    assert.deepEqual(events.map((event) => JSON.parse(event).choices[0].text), ["b", "c"]);
  } finally {
    console.error = log;
  }
});

Deno.test("a failing choice ends the others", async () => {
  const fail = (() => {
    let calls = 0;
    return () => ++calls === 5 ? new RangeError("enough") : undefined;
  })();
  await using mock = await serveMock({ fail, delay: 1 });
  assert.equal((await refused(mock.app, { n: 2, max_tokens: 200 })).status, 400);
  await until(() => mock.engine.calls.every((call) => call.ended || call.aborted || call.yielded < 10));
});

Deno.test("a client that hangs up ends its generation, whole or streamed", async () => {
  for (const stream of [false, true]) {
    await using mock = await serveMock({ delay: 2 });
    const client = new AbortController();
    const response = post(mock.app, { model: "mock", prompt: "a", max_tokens: 200, stream }, { signal: client.signal });
    if (stream) {
      const reader = (await response).body!.getReader();
      await reader.read();
      await reader.cancel();
    } else {
      await until(() => mock.engine.calls[0]?.yielded > 2);
      client.abort();
    }
    await until(() => mock.engine.calls[0].aborted);
    assert.ok(mock.engine.calls[0].yielded < 50);
    await response.catch(() => {});
  }
});

Deno.test("disposing the app ends what runs", async () => {
  const mock = await serveMock({ delay: 2 });
  const whole = post(mock.app, { model: "mock", prompt: "a", max_tokens: 200 });
  const streamed = await post(mock.app, { model: "mock", prompt: "a", max_tokens: 200, stream: true });
  const events = streamed.text();
  await until(() => mock.engine.calls.length === 2);
  await mock[Symbol.asyncDispose]();
  assert.equal((await refusal(await whole)).status, 503);
  const [error, done] = readEvents(await events).slice(-2);
  assert.equal(done, "[DONE]");
  fits("Error", JSON.parse(error));
});
