/** Chat by clients that people use, on a real socket: the openai package and the AI SDK. */
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateText, streamText } from "ai";
import OpenAI from "openai";
import { readChat } from "../../serve/chat.ts";
import { type RunningServer, startServer } from "../../serve/server.ts";
import { type MockEngine, mockEngine, type MockOptions } from "./mock_engine.ts";
import { bytes, saying, until } from "./serving.ts";

Object.assign(globalThis, { AI_SDK_LOG_WARNINGS: false }); // it sends tool settings to completions itself

const chat = await readChat("", {}, "chatml");

interface Served extends AsyncDisposable {
  readonly server: RunningServer;
  readonly engine: MockEngine;
}

async function serve(options: MockOptions): Promise<Served> {
  const engine = mockEngine(options);
  const model = { name: "org/mock", engine, tokenizer: bytes, chat };
  const server = await startServer({ hostname: "127.0.0.1", port: 0, model });
  return { server, engine, [Symbol.asyncDispose]: () => server[Symbol.asyncDispose]() };
}

const openai = ({ server }: Served) => new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "none", maxRetries: 0 });

const aiSdk = ({ server }: Served) =>
  createOpenAICompatible({ name: "wgpt", baseURL: `${server.url}/v1`, includeUsage: true });

Deno.test("the openai client chats, whole and streamed", async () => {
  await using served = await serve({ ...saying("Hello 😀"), delay: 1 });
  const { chat } = openai(served);
  const messages = [{ role: "user" as const, content: "Hi" }];
  const whole = await chat.completions.create({
    model: "org/mock",
    messages,
    n: 2,
    logprobs: true,
    top_logprobs: 4,
    max_completion_tokens: 50,
  });
  assert.deepEqual(whole.choices.map(({ message }) => message.content), ["Hello 😀", "Hello 😀"]);
  assert.equal(whole.choices[1].logprobs?.content?.[0].top_logprobs.length, 4);
  const stream = chat.completions.stream({ model: "org/mock", messages, stream_options: { include_usage: true } });
  const deltas: string[] = [];
  stream.on("content", (delta) => deltas.push(delta));
  const final = await stream.finalChatCompletion();
  assert.equal(deltas.join(""), "Hello 😀");
  assert.ok(deltas.length > 3);
  assert.equal(final.choices[0].finish_reason, "stop");
  assert.equal((await stream.totalUsage()).completion_tokens, 11);
  const refused = chat.completions.create({ model: "org/mock", messages, response_format: { type: "json_object" } });
  await assert.rejects(
    refused,
    (error) => error instanceof OpenAI.BadRequestError && error.param === "response_format",
  );
});

Deno.test("the AI SDK chats, whole and streamed, and sees refusals", async () => {
  await using served = await serve({ ...saying("Hello 😀"), delay: 1 });
  const model = aiSdk(served)("org/mock");
  const { text, finishReason, usage } = await generateText({ model, system: "Be brief.", prompt: "Hi", maxRetries: 0 });
  assert.deepEqual([text, finishReason, usage.outputTokens], ["Hello 😀", "stop", 11]);
  const prompt = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
  assert.equal(bytes.decode(served.engine.calls[0].prompt), prompt);
  const streamed = streamText({ model, prompt: "Hi", temperature: 0.5, seed: 7, stopSequences: ["😀"] });
  let all = "";
  for await (const delta of streamed.textStream) all += delta;
  assert.deepEqual([all, await streamed.finishReason], ["Hello ", "stop"]);
  assert.deepEqual(
    [served.engine.calls[1].sampling.temperature, served.engine.calls[1].sampling.seed],
    [0.5, 7],
  );
  const wrong = generateText({ model, prompt: "Hi", temperature: 3, maxRetries: 0 });
  await assert.rejects(
    wrong,
    (error) => APICallError.isInstance(error) && error.statusCode === 400 && /temperature/.test(error.message),
  );
});

Deno.test("the AI SDK completes, and its abort ends the generation", async () => {
  await using served = await serve({ delay: 2 });
  const model = aiSdk(served).completionModel("org/mock");
  const { text } = await generateText({ model, prompt: "a", maxOutputTokens: 3, maxRetries: 0 });
  assert.equal(text.length, 3);
  const controller = new AbortController();
  const streamed = streamText({ model, prompt: "a", maxOutputTokens: 200, abortSignal: controller.signal });
  for await (const _ of streamed.textStream) controller.abort();
  await until(() => served.engine.calls.at(-1)!.aborted);
});
