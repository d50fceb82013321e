/** Chat completions without a port: templates, forms, refusals, texts that end an answer. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { UserError } from "../../model/errors.ts";
import { type Chat, type Message, readChat } from "../../serve/chat.ts";
import type { ChatChunk, ChatCompletion } from "../../serve/chat_protocol.ts";
import type { MockOptions } from "./mock_engine.ts";
import { fits } from "./schemas.ts";
import { bytes, type Mocked, parseEvents, post, saying, serveMock, textTokens } from "./serving.ts";

const CHAT = "/v1/chat/completions";
const chatml = (await readChat("", {}, "chatml"))!;
const plain = { addGenerationPrompt: true, continueFinalMessage: false };

/** The prompt that the engine got, as text. */
const promptOf = ({ engine }: Mocked) => bytes.decode(engine.calls.at(-1)!.prompt);

const serveChat = (options: MockOptions = saying("Hi there"), chat: Chat | undefined = chatml) =>
  serveMock(options, { chat });

const user = (content: unknown) => [{ role: "user", content }];

async function chat(mock: Mocked, fields: Record<string, unknown>): Promise<ChatCompletion> {
  const response = await post(mock.app, { model: "mock", messages: user("Hello"), ...fields }, {}, CHAT);
  const body = await response.json();
  assert.equal(response.status, 200, JSON.stringify(body));
  fits("ChatCompletion", body);
  return body;
}

async function chunks(mock: Mocked, fields: Record<string, unknown>): Promise<ChatChunk[]> {
  const body = { model: "mock", messages: user("Hello"), stream: true, ...fields };
  const events = await parseEvents<ChatChunk>(await post(mock.app, body, {}, CHAT));
  for (const event of events) fits("ChatChunk", event);
  return events;
}

async function refusal(mock: Mocked, fields: Record<string, unknown>) {
  const response = await post(mock.app, { model: "mock", messages: user("Hello"), ...fields }, {}, CHAT);
  const body = await response.json();
  fits("Error", body);
  assert.equal(response.status, 400, JSON.stringify(body));
  return body.error;
}

Deno.test("a conversation is written by the template, and answered", async () => {
  await using mock = await serveChat();
  const messages = [
    { role: "developer", content: "Be brief." },
    ...user([{ type: "text", text: "Hel" }, {
      type: "text",
      text: "lo",
    }]),
  ];
  const { choices: [choice], usage } = await chat(mock, { messages });
  assert.deepEqual(choice, {
    index: 0,
    message: { role: "assistant", content: "Hi there", refusal: null },
    logprobs: null,
    finish_reason: "stop",
  });
  const prompt = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n";
  assert.equal(promptOf(mock), prompt);
  assert.deepEqual(usage, { prompt_tokens: prompt.length, completion_tokens: 9, total_tokens: prompt.length + 9 });
});

Deno.test("an answer may take what is left of the context, and ends at the template's end mark", async () => {
  await using mock = await serveChat(saying("Yes<|im_end|>\n<|im_start|>user"));
  assert.equal((await chat(mock, {})).choices[0].message.content, "Yes");
  const { prompt, sampling } = mock.engine.calls[0];
  assert.equal(prompt.length + sampling.maxTokens, mock.engine.contextLength);
  assert.equal((await chat(mock, { max_tokens: 2, max_completion_tokens: 1 })).choices[0].message.content, "Y");
  const long = await refusal(mock, { messages: user("x".repeat(300)) });
  assert.equal(long.code, "context_length_exceeded");
});

Deno.test("a streamed answer begins with the role, ends with the reason, and adds up to the whole one", async () => {
  await using mock = await serveChat({ say: () => [...textTokens("Grüße 🙂"), 256] });
  const events = await chunks(mock, { n: 2, logprobs: true, top_logprobs: 2, stream_options: { include_usage: true } });
  const whole = await chat(mock, { n: 2, logprobs: true, top_logprobs: 2 });
  const usage = events.pop()!;
  assert.deepEqual([usage.choices, usage.usage], [[], whole.usage]);
  for (const { index, message, logprobs, finish_reason } of whole.choices) {
    const own = events.flatMap(({ choices }) => choices).filter((choice) => choice.index === index);
    assert.deepEqual(own[0].delta, { role: "assistant", content: "" });
    assert.deepEqual(own.slice(1, -1).map(({ delta }) => delta.role), own.slice(1, -1).map(() => undefined));
    assert.deepEqual([own.at(-1)!.delta, own.at(-1)!.finish_reason], [{}, finish_reason]);
    assert.equal(own.map(({ delta }) => delta.content ?? "").join(""), message.content);
    assert.deepEqual(own.flatMap((choice) => choice.logprobs?.content ?? []), logprobs!.content);
    assert.equal(message.content, "Grüße 🙂");
  }
  assert.equal(new Set(events.map(({ id }) => id)).size, 1);
});

Deno.test("log-probabilities come with the bytes of each token", async () => {
  await using mock = await serveChat({ say: () => [...textTokens("é"), 256] });
  const { choices: [{ logprobs }] } = await chat(mock, { logprobs: true, top_logprobs: 3 });
  assert.deepEqual(logprobs!.content.map(({ bytes }) => bytes), [[0xc3], [0xa9]]);
  assert.ok(logprobs!.content.every(({ top_logprobs }) => top_logprobs.length === 3));
  const without = await chat(mock, { logprobs: true });
  assert.deepEqual(without.choices[0].logprobs!.content.map(({ top_logprobs }) => top_logprobs), [[], []]);
});

Deno.test("a model without a template answers 400 and says which flag helps", async () => {
  await using mock = await serveMock(saying("x"));
  const { message, code } = await refusal(mock, {});
  assert.match(message, /--chat-template chatml/);
  assert.equal(code, "no_chat_template");
});

Deno.test("an answer can be begun by the client", async () => {
  await using mock = await serveChat();
  const messages = [...user("Hello"), { role: "assistant", content: "It is" }];
  await chat(mock, { messages, continue_final_message: true });
  assert.ok(promptOf(mock).endsWith("<|im_start|>assistant\nIt is"));
  await chat(mock, { messages: user("Hello"), add_generation_prompt: false });
  assert.ok(promptOf(mock).endsWith("Hello<|im_end|>\n"));
  assert.equal((await refusal(mock, { continue_final_message: true })).param, "continue_final_message");
});

Deno.test("what is understood but not offered is refused by name", async () => {
  await using mock = await serveChat();
  const cases: Record<string, unknown> = {
    response_format: { type: "json_object" },
    tool_choice: "required",
    functions: [{ name: "f" }],
    modalities: ["text", "audio"],
    audio: { voice: "a", format: "wav" },
    web_search_options: {},
    top_logprobs: 2,
    stream_options: { include_usage: true },
    messages: [],
    "messages.0.role": undefined,
    "messages.0.content": undefined,
  };
  for (const [param, value] of Object.entries(cases)) {
    const fields = param === "messages.0.role"
      ? { messages: [{ role: "robot", content: "a" }] }
      : param === "messages.0.content"
      ? { messages: user([{ type: "image_url", image_url: { url: "data:" } }]) }
      : { [param]: value };
    assert.equal((await refusal(mock, fields)).param, param);
  }
  const accepted = { response_format: { type: "text" }, tool_choice: "auto", store: true, metadata: { a: "b" } };
  await chat(mock, { ...accepted, reasoning_effort: "low", modalities: ["text"] });
});

const conversation: Message[] = [
  { role: "system", content: "S" },
  { role: "user", content: " U " },
  { role: "assistant", content: "A" },
  { role: "user", content: "V" },
];

/** A folder with these files. */
async function folderWith(files: Record<string, string>): Promise<string> {
  const folder = await Deno.makeTempDir();
  for (const [name, text] of Object.entries(files)) await Deno.writeTextFile(join(folder, name), text);
  return folder;
}

Deno.test("templates of usual kinds are rendered: headers, trimming, turns, loops", async () => {
  const headers = "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n" +
    "{{ m.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}";
  const turns =
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}" +
    "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}{{ bos_token }}{% for m in rest %}" +
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Turns must alternate') }}{% endif %}" +
    "{% if m.role == 'user' %}[INST] {{ (system + '\n\n' + m.content) if loop.first and system else m.content }} [/INST]" +
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}";
  const config = { bos_token: "<s>", eos_token: { content: "</s>", special: true } };
  const render = async (template: string, messages = conversation) =>
    (await readChat("/nowhere", { ...config, chat_template: template }))!.render(messages, plain);
  const header = (role: string) => `<|start_header_id|>${role}<|end_header_id|>\n\n`;
  assert.equal(
    await render(headers),
    `<s>${header("system")}S<|eot_id|>${header("user")}U<|eot_id|>${header("assistant")}A<|eot_id|>` +
      `${header("user")}V<|eot_id|>${header("assistant")}`,
  );
  assert.equal(await render(turns), "<s>[INST] S\n\n U  [/INST]A</s>[INST] V [/INST]");
  await assert.rejects(
    render(turns, [conversation[1], conversation[3]]),
    (error) => error instanceof Error && /Turns must alternate/.test(error.message) && "status" in error,
  );
});

Deno.test("a template is found beside the model, by name for tools, or given", async () => {
  const named = [{ name: "default", template: "d" }, { name: "tool_use", template: "{{ tools | length }}" }];
  const both = (await readChat("/nowhere", { chat_template: named }))!;
  assert.equal(both.render(conversation, plain), "d");
  assert.equal(both.render(conversation, { ...plain, tools: [{}, {}] }), "2");
  const folder = await folderWith({ "chat_template.jinja": "file", "own.jinja": "own {{ mood }}" });
  try {
    assert.equal((await readChat(folder, { chat_template: "config" }))!.render(conversation, plain), "file");
    const own = (await readChat(folder, {}, join(folder, "own.jinja")))!;
    assert.equal(own.render(conversation, { ...plain, more: { mood: "good" } }), "own good");
    assert.equal(await readChat(folder + "/none", {}), undefined);
    for (const given of [folder, join(folder, "none.jinja")]) await assert.rejects(readChat("", {}, given), UserError);
    await assert.rejects(readChat("/nowhere", { chat_template: "{% if %}" }), UserError);
    await assert.rejects(readChat("/nowhere", { chat_template: [{ name: "rag", template: "" }] }), UserError);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("tools reach the template, with calls' arguments as objects, unless no call is wanted", async () => {
  const template =
    "{% if tools %}{{ tools[0].function.name }}{% endif %}{% for m in messages %}{% for call in m.tool_calls or [] %}" +
    "({{ call.function.arguments.city }}){% endfor %}{{ m.content or '' }}{% endfor %}";
  const chatOf = (await readChat("/nowhere", { chat_template: template }))!;
  await using mock = await serveChat(saying("ok"), chatOf);
  const tools = [{ type: "function", function: { name: "weather", parameters: {} } }];
  const calls = [{ id: "1", type: "function", function: { name: "weather", arguments: '{"city":"Rome"}' } }];
  const messages = [...user("Q"), { role: "assistant", content: null, tool_calls: calls }, {
    role: "tool",
    tool_call_id: "1",
    content: "sunny",
  }];
  await chat(mock, { messages, tools });
  assert.equal(promptOf(mock), "weatherQ(Rome)sunny");
  await chat(mock, { messages, tools, tool_choice: "none" });
  assert.equal(promptOf(mock), "Q(Rome)sunny");
});
