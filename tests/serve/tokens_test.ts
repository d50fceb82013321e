/** Text to token ids and back, over HTTP. */
import assert from "node:assert/strict";
import { endOfText, type Mocked, serveMock, textTokens } from "./serving.ts";

async function ask({ app }: Mocked, path: string, body: unknown) {
  const headers = { "content-type": "application/json" };
  const response = await app.request(path, { method: "POST", headers, body: JSON.stringify(body) });
  return { status: response.status, body: await response.json() };
}

Deno.test("a text becomes the ids a completion would see, and comes back from them", async () => {
  await using mock = await serveMock({ contextLength: 10 });
  const prompt = "Zwölf 😀 Boxkämpfer<|endoftext|>!"; // longer than the context
  const tokens = [...textTokens(prompt)];
  assert.ok(tokens.includes(endOfText));
  const there = await ask(mock, "/tokenize", { model: "mock", prompt });
  assert.deepEqual(there, { status: 200, body: { tokens, count: tokens.length, max_model_len: 10 } });
  assert.deepEqual(await ask(mock, "/detokenize", { tokens }), { status: 200, body: { prompt } });
  assert.deepEqual((await ask(mock, "/tokenize", { prompt: "" })).body.tokens, []);
  assert.deepEqual((await ask(mock, "/detokenize", { tokens: [] })).body.prompt, "");
  assert.equal(mock.engine.calls.length, 0);
});

Deno.test("ids that the model has and the tokenizer hasn't have no text", async () => {
  await using mock = await serveMock({ vocabSize: 300 });
  assert.equal((await ask(mock, "/detokenize", { tokens: [97, 299, 98] })).body.prompt, "ab");
});

Deno.test("what can't be turned is refused", async () => {
  await using mock = await serveMock();
  const wrong: [string, unknown, number, string | null][] = [
    ["/tokenize", {}, 400, "prompt"],
    ["/tokenize", { prompt: [1] }, 400, "prompt"],
    ["/tokenize", { prompt: "a", model: "other" }, 404, "model"],
    ["/tokenize", [], 400, null],
    ["/tokenize", { prompt: "x".repeat(5 * 2 ** 20) }, 413, null],
    ["/detokenize", { tokens: "a" }, 400, "tokens"],
    ["/detokenize", { tokens: [-1] }, 400, "tokens"],
    ["/detokenize", { tokens: [257] }, 400, "tokens"],
    ["/detokenize", { tokens: [1], model: "other" }, 404, "model"],
  ];
  for (const [path, body, status, param] of wrong) {
    const answer = await ask(mock, path, body);
    assert.deepEqual([answer.status, answer.body.error.param], [status, param], path);
  }
  assert.equal((await mock.app.request("/tokenize")).headers.get("allow"), "POST");
});
