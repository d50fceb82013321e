/** Completions as OpenAI's API has them, by a mock engine whose tokens are known. */
import assert from "node:assert/strict";
import type { Completion } from "../../serve/protocol.ts";
import { bytes, complete, endOfText, post, saying, serveMock, stream, textTokens } from "./serving.ts";
import { mockLogprob } from "./mock_engine.ts";

const textOf = (completion: Completion) => completion.choices.map((choice) => choice.text);

Deno.test("defaults are OpenAI's", async () => {
  await using mock = await serveMock();
  const answer = await complete(mock.app, { prompt: "0" });
  assert.equal(answer.choices[0].text, "123456789:;<=>?@"); // 16 tokens
  assert.equal(answer.object, "text_completion");
  assert.equal(answer.model, "mock");
  assert.match(answer.id, /^cmpl-[0-9a-f]{32}$/);
  assert.ok(Math.abs(answer.created - Date.now() / 1000) < 5);
  assert.deepEqual(answer.usage, { prompt_tokens: 1, completion_tokens: 16, total_tokens: 17 });
  assert.equal(answer.choices[0].finish_reason, "length");
  assert.equal(answer.choices[0].logprobs, null);
  const { seed: _, ...sampling } = mock.engine.calls[0].sampling;
  assert.deepEqual(sampling, {
    maxTokens: 16,
    minTokens: 0,
    temperature: 1,
    topP: 1,
    topK: 0,
    minP: 0,
    repetitionPenalty: 1,
    presencePenalty: 0,
    frequencyPenalty: 0,
    logitBias: new Map(),
    stopTokens: [endOfText],
    logprobs: 0,
  });
});

Deno.test("all sampling parameters reach the engine; null means the default", async () => {
  await using mock = await serveMock();
  await complete(mock.app, {
    prompt: [65, 66],
    max_tokens: 3,
    temperature: 0.5,
    top_p: 0.9,
    top_k: 40,
    min_p: 0.05,
    repetition_penalty: 1.1,
    presence_penalty: -2,
    frequency_penalty: 2,
    logit_bias: { "65": -100, "256": 1.5 },
    seed: 7,
    logprobs: 5,
    stop: null,
    user: "someone",
    suffix: null,
    best_of: null,
    n: null,
    stream_options: null,
  });
  assert.deepEqual(mock.engine.calls[0].prompt, [65, 66]);
  assert.deepEqual(mock.engine.calls[0].sampling, {
    maxTokens: 3,
    minTokens: 0,
    temperature: 0.5,
    topP: 0.9,
    topK: 40,
    minP: 0.05,
    repetitionPenalty: 1.1,
    presencePenalty: -2,
    frequencyPenalty: 2,
    logitBias: new Map([[65, -100], [256, 1.5]]),
    stopTokens: [endOfText],
    seed: 7,
    logprobs: 5,
  });
  await complete(mock.app, { prompt: "a", top_p: 0, top_k: -1, temperature: null });
  const { temperature, topP, topK } = mock.engine.calls[1].sampling;
  assert.deepEqual({ temperature, topP, topK }, { temperature: 0, topP: 1, topK: 0 });
});

Deno.test("prompts: text, ids, a list of either; choices in order, prompts counted once", async () => {
  await using mock = await serveMock();
  const single = await complete(mock.app, { prompt: "a", max_tokens: 2 });
  assert.deepEqual(textOf(single), ["bc"]);
  assert.deepEqual(textOf(await complete(mock.app, { prompt: [0x61], max_tokens: 2 })), ["bc"]);
  const texts = await complete(mock.app, { prompt: ["a", "xyz"], max_tokens: 2, n: 2 });
  assert.deepEqual(textOf(texts), ["bc", "bc", "{|", "{|"]);
  assert.deepEqual(texts.choices.map((choice) => choice.index), [0, 1, 2, 3]);
  assert.deepEqual(texts.usage, { prompt_tokens: 4, completion_tokens: 8, total_tokens: 12 });
  const ids = await complete(mock.app, { prompt: [[0x61], [0x62, 0x63]], max_tokens: 1 });
  assert.deepEqual(textOf(ids), ["b", "d"]);
});

Deno.test("an empty prompt begins with end of text, which no echo shows", async () => {
  await using mock = await serveMock(saying("Hi"));
  for (const prompt of ["", null]) {
    const answer = await complete(mock.app, { prompt, echo: true, logprobs: 0 });
    assert.equal(answer.choices[0].text, "Hi");
    assert.deepEqual(answer.choices[0].logprobs?.tokens, ["H", "i"]);
    assert.equal(answer.usage?.prompt_tokens, 1);
    assert.deepEqual(mock.engine.calls.at(-1)!.prompt, [endOfText]);
  }
  await complete(mock.app, { prompt: "a<|endoftext|>b" });
  assert.deepEqual(mock.engine.calls.at(-1)!.prompt, [97, endOfText, 98]);
});

Deno.test("without an end-of-text token an empty prompt is refused", async () => {
  await using mock = await serveMock({}, { tokenizer: { ...bytes, endOfText: undefined } });
  const response = await post(mock.app, { model: "mock", prompt: "" });
  assert.equal(response.status, 400);
  assert.equal((await response.json()).error.param, "prompt");
});

Deno.test("a stop token ends the text and isn't part of it", async () => {
  await using mock = await serveMock(saying("Hello"));
  const answer = await complete(mock.app, { prompt: "x", max_tokens: 100, logprobs: 1 });
  assert.equal(answer.choices[0].text, "Hello");
  assert.equal(answer.choices[0].finish_reason, "stop");
  assert.deepEqual(answer.choices[0].logprobs?.tokens, [..."Hello"]);
  assert.equal(answer.usage?.completion_tokens, 6); // the stop token was generated too
  await using other = await serveMock(saying("Hello"), { stopTokens: ["l".charCodeAt(0)] });
  assert.equal((await complete(other.app, { prompt: "x" })).choices[0].text, "He");
});

Deno.test("stop strings end the text before them, whole and streamed", async () => {
  await using mock = await serveMock(saying("one two three four"));
  for (const [stop, text] of [["two", "one "], [["four", " th"], "one two"], [["zzz"], "one two three four"]]) {
    const answer = await complete(mock.app, { prompt: "x", max_tokens: 50, stop });
    assert.equal(answer.choices[0].text, text);
    assert.equal(answer.choices[0].finish_reason, "stop");
    const events = await stream(mock.app, { prompt: "x", max_tokens: 50, stop });
    assert.equal(events.map((event) => event.choices[0].text).join(""), text);
    assert.equal(events.at(-1)!.choices[0].finish_reason, "stop");
  }
  const atLimit = await complete(mock.app, { prompt: "x", max_tokens: 7, stop: "two" });
  assert.equal(atLimit.choices[0].finish_reason, "stop");
  const beforeLimit = await complete(mock.app, { prompt: "x", max_tokens: 6, stop: "two" });
  assert.deepEqual([beforeLimit.choices[0].text, beforeLimit.choices[0].finish_reason], ["one tw", "length"]);
});

Deno.test("a stop string ends the engine's work", async () => {
  await using mock = await serveMock({ delay: 1 });
  await complete(mock.app, { prompt: "a", max_tokens: 100, stop: "e" });
  assert.equal(mock.engine.calls[0].yielded, 4);
});

Deno.test("log-probabilities: chosen, best, offsets in code points", async () => {
  await using mock = await serveMock({ ...saying("é€z"), vocabSize: 257 });
  const { choices: [choice] } = await complete(mock.app, { prompt: "x", max_tokens: 50, logprobs: 2 });
  const logprobs = choice.logprobs!;
  assert.deepEqual(logprobs.tokens, ["\\xc3", "\\xa9", "\\xe2", "\\x82", "\\xac"].map((b) => "bytes:" + b).concat("z"));
  assert.deepEqual(logprobs.text_offset, [0, 0, 1, 1, 1, 2]);
  const tokens = textTokens("é€z");
  assert.deepEqual(logprobs.token_logprobs, [...tokens].map((token, i) => mockLogprob(token, i + 1, 2, 257).logprob));
  const last = mockLogprob(tokens[5], 6, 2, 257);
  assert.deepEqual(logprobs.top_logprobs[5], { "z": last.logprob, "{": last.top[0].logprob, "|": last.top[1].logprob });
  const zero = await complete(mock.app, { prompt: "x", max_tokens: 1, logprobs: 0, echo: true });
  assert.deepEqual(zero.choices[0].logprobs?.top_logprobs, [null, {
    "bytes:\\xc3": mockLogprob(0xc3, 1, 0, 257).logprob,
  }]);
});

Deno.test("minus infinity is shown as -9999", async () => {
  await using mock = await serveMock();
  const generate = mock.engine.generate.bind(mock.engine);
  mock.engine.generate = async function* (prompt, sampling, signal) {
    for await (const token of generate(prompt, sampling, signal)) yield { ...token, logprob: -Infinity };
  };
  const answer = await complete(mock.app, { prompt: "a", max_tokens: 1, logprobs: 0 });
  assert.deepEqual(answer.choices[0].logprobs?.token_logprobs, [-9999]);
});

Deno.test("echo shows the prompt, scored where log-probabilities are wanted", async () => {
  await using mock = await serveMock();
  const plain = await complete(mock.app, { prompt: "aé", echo: true, max_tokens: 0 });
  assert.deepEqual([plain.choices[0].text, plain.choices[0].finish_reason], ["aé", "length"]);
  assert.deepEqual(plain.usage, { prompt_tokens: 3, completion_tokens: 0, total_tokens: 3 });
  assert.equal(mock.engine.calls.length, 0);

  const { choices } = await complete(mock.app, { prompt: "ab", echo: true, max_tokens: 2, logprobs: 1, n: 2 });
  for (const choice of choices) {
    assert.equal(choice.text, "abcd");
    assert.deepEqual(choice.logprobs?.tokens, ["a", "b", "c", "d"]);
    assert.deepEqual(choice.logprobs?.text_offset, [0, 1, 2, 3]);
    const expected = [97, 98, 99, 100].map((token, i) => mockLogprob(token, i, 1, 257));
    assert.deepEqual(choice.logprobs?.token_logprobs, [null, ...expected.slice(1).map((one) => one.logprob)]);
    assert.equal(choice.logprobs?.top_logprobs[0], null);
    assert.deepEqual(choice.logprobs?.top_logprobs[1], { b: expected[1].logprob, c: expected[1].top[0].logprob });
  }
});

Deno.test("max_tokens 0 without echo is an empty text", async () => {
  await using mock = await serveMock();
  const answer = await complete(mock.app, { prompt: "ab", max_tokens: 0 });
  assert.deepEqual([answer.choices[0].text, answer.choices[0].finish_reason], ["", "length"]);
});

Deno.test("seeds: choice i of n takes seed + i, alike for each prompt; without a seed all differ", async () => {
  await using mock = await serveMock();
  const seeds = () => mock.engine.calls.splice(0).map((call) => call.sampling.seed);
  await complete(mock.app, { prompt: ["a", "b"], n: 3, seed: 10, max_tokens: 1 });
  assert.deepEqual(seeds(), [10, 11, 12, 10, 11, 12]);
  await complete(mock.app, { prompt: "a", n: 2, seed: -1, max_tokens: 1 });
  assert.deepEqual(seeds(), [2 ** 32 - 1, 0]);
  await complete(mock.app, { prompt: "a", seed: 9007199254740993, max_tokens: 1 });
  assert.deepEqual(seeds(), [0]); // 2^53 modulo 2^32: JSON numbers end there
  await complete(mock.app, { prompt: ["a", "a"], n: 2, max_tokens: 1 });
  assert.equal(new Set(seeds()).size, 4);
});

Deno.test("streams carry the same answer as whole completions", async () => {
  await using mock = await serveMock(saying("Zwölf Boxkämpfer 😀 END jagen"));
  const fields = { prompt: ["ä", "b"], n: 2, echo: true, logprobs: 2, stop: ["END"], max_tokens: 60 };
  const whole = await complete(mock.app, fields);
  const events = await stream(mock.app, { ...fields, stream_options: { include_usage: true } });
  const last = events.pop()!;
  assert.deepEqual(last.choices, []);
  assert.deepEqual(last.usage, whole.usage);
  for (const choice of whole.choices) {
    const own = events.map((event) => event.choices[0]).filter(({ index }) => index === choice.index);
    assert.equal(own.map(({ text }) => text).join(""), choice.text);
    assert.deepEqual(own.map(({ finish_reason }) => finish_reason), [...Array(own.length - 1).fill(null), "stop"]);
    assert.deepEqual(own.flatMap(({ logprobs }) => logprobs!.tokens), choice.logprobs!.tokens);
    assert.deepEqual(own.flatMap(({ logprobs }) => logprobs!.text_offset), choice.logprobs!.text_offset);
    assert.deepEqual(own.flatMap(({ logprobs }) => logprobs!.top_logprobs), choice.logprobs!.top_logprobs);
  }
  assert.equal(new Set(events.map(({ id }) => id)).size, 1);
  assert.ok(events.every((event) => event.usage === null && event.object === "text_completion"));
  assert.ok(!events.some((event) => event.choices[0].text.includes("\ufffd")));
});

Deno.test("without include_usage a stream says nothing of usage", async () => {
  await using mock = await serveMock();
  for (const stream_options of [undefined, null, {}, { include_usage: false }]) {
    const events = await stream(mock.app, { prompt: "a", max_tokens: 2, stream_options });
    assert.ok(events.every((event) => !("usage" in event) && event.choices.length === 1));
  }
});

Deno.test("choices of one request don't wait for each other", async () => {
  await using mock = await serveMock({ delay: 2 });
  const events = await stream(mock.app, { prompt: ["a", "b"], max_tokens: 5 });
  const order = events.map((event) => event.choices[0].index);
  assert.ok(order.indexOf(1) < order.lastIndexOf(0));
});

Deno.test("stop_token_ids end a text beside the model's own; ignore_eos leaves them alone", async () => {
  await using mock = await serveMock({ say: () => [...textTokens("ab"), endOfText, ...textTokens("cd")] });
  const [c] = textTokens("c");
  const finish = async (fields: Record<string, unknown>) => {
    const { choices: [{ text, finish_reason }] } = await complete(mock.app, { prompt: "x", max_tokens: 5, ...fields });
    return [text, finish_reason];
  };
  assert.deepEqual(await finish({ stop_token_ids: [98] }), ["a", "stop"]);
  assert.deepEqual(await finish({ stop_token_ids: [c] }), ["ab", "stop"]);
  assert.deepEqual(await finish({ ignore_eos: true, stop_token_ids: [c] }), ["ab<|endoftext|>", "stop"]);
  assert.deepEqual(await finish({ ignore_eos: true }), ["ab<|endoftext|>cd", "length"]);
  const stops = mock.engine.calls.map((call) => call.sampling.stopTokens);
  assert.deepEqual(stops, [[endOfText, 98], [endOfText, c], [c], []]);
});

Deno.test("prompt_logprobs give each prompt token's, by id, however many logprobs are asked for", async () => {
  await using mock = await serveMock();
  const fields = { prompt: ["ab", "c"], max_tokens: 1, logprobs: 3, prompt_logprobs: 1, n: 2 };
  const { choices } = await complete(mock.app, fields);
  const { logprob, top: [next] } = mockLogprob(98, 1, 1, 257);
  const second = {
    "98": { logprob, decoded_token: "b" },
    "99": { logprob: next.logprob, decoded_token: "c" },
  };
  assert.deepEqual(choices.map((choice) => choice.prompt_logprobs), [[null, second], [null, second], [null], [null]]);
  assert.deepEqual(choices.map((choice) => choice.text), ["c", "c", "d", "d"]);
  const without = await complete(mock.app, { prompt: "ab", max_tokens: 1 });
  assert.ok(!("prompt_logprobs" in without.choices[0]));
});

Deno.test("min_tokens holds stop tokens and stop strings off until so many tokens are made", async () => {
  await using mock = await serveMock(saying("a.b.c.d"));
  const text = async (fields: Record<string, unknown>) =>
    (await complete(mock.app, { prompt: "x", stop: ".", ...fields })).choices[0].text;
  assert.equal(await text({}), "a");
  assert.equal(await text({ min_tokens: 1 }), "a");
  assert.equal(await text({ min_tokens: 2 }), "a.b");
  assert.equal(await text({ min_tokens: 3 }), "a.b");
  assert.equal(await text({ min_tokens: 6 }), "a.b.c.d");
  assert.deepEqual(mock.engine.calls.map(({ sampling }) => sampling.minTokens), [0, 1, 2, 3, 6]);
});
