/** Whatever a request says, in whatever bytes, the answer is in form. */
import assert from "node:assert/strict";
import fc from "fast-check";
import { loadTokenizer } from "../../model/tokenizer.ts";
import { inForm } from "./in_form.ts";
import { post, serveMock } from "./serving.ts";

const anything = fc.oneof(
  fc.jsonValue(),
  fc.constantFrom(1e308, -1e308, 2 ** 53, -(2 ** 63), 0.1, "", "\ud800", "\u0000", "__proto__", [[]], [[[]]], {}),
  fc.string({ unit: "binary", maxLength: 40 }),
  fc.integer(),
  fc.double({ noNaN: true }),
);

/** Mostly what is allowed, so that the faults of one field are met behind the others. */
const field = <T>(good: fc.Arbitrary<T>) =>
  fc.oneof({ weight: 30, arbitrary: good as fc.Arbitrary<unknown> }, { weight: 1, arbitrary: anything });
const number = (min: number, max: number) => field(fc.double({ min, max, noNaN: true }));
const text = fc.string({ unit: "binary", minLength: 1, maxLength: 30 });
const ids = fc.array(fc.integer({ min: 0, max: 256 }), { minLength: 1, maxLength: 20 });

const request = fc.record({
  model: fc.oneof({ weight: 30, arbitrary: fc.constant<unknown>("mock") }, { weight: 1, arbitrary: anything }),
  prompt: field(
    fc.oneof(
      text,
      ids,
      fc.array(text, { minLength: 1, maxLength: 4 }),
      fc.array(ids, { minLength: 1, maxLength: 4 }),
      fc.constant(null),
    ),
  ),
  max_tokens: field(fc.integer({ min: 0, max: 60 })),
  temperature: number(0, 2),
  top_p: number(0, 1),
  top_k: field(fc.integer({ min: -1, max: 300 })),
  min_p: number(0, 1),
  n: field(fc.integer({ min: 1, max: 4 })),
  best_of: field(fc.constant(null)),
  suffix: field(fc.constant(null)),
  stop: field(fc.oneof(text, fc.array(text, { minLength: 1, maxLength: 4 }))),
  seed: field(fc.maxSafeInteger()),
  echo: field(fc.boolean()),
  logprobs: field(fc.integer({ min: 0, max: 5 })),
  presence_penalty: number(-2, 2),
  frequency_penalty: number(-2, 2),
  repetition_penalty: number(0.01, 10),
  logit_bias: field(fc.dictionary(fc.integer({ min: 0, max: 256 }).map(String), fc.integer({ min: -100, max: 100 }))),
  stream: field(fc.boolean()),
  stream_options: field(fc.constantFrom({ include_usage: true }, null)),
}, { requiredKeys: ["model", "prompt"] });

Deno.test("whatever a request says, it is answered or refused in form, never with a 5xx", async () => {
  await using mock = await serveMock({ contextLength: 64 });
  const seen = new Map<number, number>();
  await fc.assert(
    fc.asyncProperty(request, async (body) => {
      const response = await post(mock.app, body);
      seen.set(response.status, (seen.get(response.status) ?? 0) + 1);
      const whole = await inForm(response);
      if (response.status === 200 && whole !== undefined) assert.ok(whole.choices.length > 0);
    }),
    { numRuns: 1000 },
  );
  assert.ok(seen.get(200)! > 50 && seen.get(400)! > 50, `Both kinds should occur: ${[...seen]}`);
});

Deno.test("whatever bytes, headers and methods come, the answer is in form", async () => {
  await using mock = await serveMock({ contextLength: 64 });
  const call = fc.record({
    path: fc.oneof(
      fc.constantFrom(
        "/v1/completions",
        "/v1/models",
        "/v1/models/%",
        "/v1/models/%ff",
        "/health",
        "//",
        "/v1/models/a%00b",
      ),
      fc.webPath(),
    ),
    method: fc.constantFrom("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"),
    type: fc.constantFrom(
      "application/json",
      "application/json; charset=x",
      "text/json",
      "multipart/form-data",
      ";",
      "a/b",
    ),
    body: fc.oneof(fc.uint8Array({ maxLength: 100 }), fc.json().map((json) => new TextEncoder().encode(json))),
  });
  await fc.assert(
    fc.asyncProperty(call, async ({ path, method, type, body }) => {
      const init = {
        method,
        headers: { "content-type": type },
        body: method === "GET" || method === "HEAD" ? undefined : body,
      };
      const response = await mock.app.request(new Request(`http://localhost${path}`, init as RequestInit));
      const text = await response.text();
      assert.ok(response.status < 500, text);
      if (response.status >= 400 && method !== "HEAD") assert.equal(typeof JSON.parse(text).error.message, "string");
    }),
    { numRuns: 500 },
  );
});

Deno.test("large hostile bodies are refused quickly", async () => {
  await using mock = await serveMock({ vocabSize: 50257, contextLength: 1024 }, {
    tokenizer: await loadTokenizer("gpt2"),
  });
  const bodies = {
    "a million ids": `{"model":"mock","prompt":[${"1,".repeat(1e6)}1]}`,
    "a million empty texts": `{"model":"mock","prompt":[${'"",'.repeat(1e6)}""]}`,
    "a million lists": `{"model":"mock","prompt":[${"[1],".repeat(5e5)}[1]]}`,
    "deep lists": `{"model":"mock","prompt":${"[".repeat(1e6)}${"]".repeat(1e6)}}`,
    "deep objects": `{"model":"mock","logit_bias":${'{"1":'.repeat(3e5)}1${"}".repeat(3e5)}}`,
    "a million stops": `{"model":"mock","prompt":"a","stop":[${'"a",'.repeat(9e5)}"a"]}`,
    "a long text": JSON.stringify({ model: "mock", prompt: "word ".repeat(8e5) }),
    "one long word": JSON.stringify({ model: "mock", prompt: "x".repeat(4e6) }),
  };
  for (const [name, body] of Object.entries(bodies)) {
    const start = performance.now();
    const response = await post(mock.app, body);
    assert.equal(response.status, 400, `${name}: ${await response.text()}`);
    const time = performance.now() - start;
    assert.ok(time < 3000, `${name} took ${time} ms`);
  }
});
