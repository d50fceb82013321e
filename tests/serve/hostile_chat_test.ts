/** Whatever chats, texts and ids say, the answer is in form: templates and tokenizers meet them too. */
import assert from "node:assert/strict";
import fc from "fast-check";
import { readChat } from "../../serve/chat.ts";
import { inForm } from "./in_form.ts";
import { type Mocked, post, serveMock } from "./serving.ts";

const anything = fc.oneof(
  fc.jsonValue(),
  fc.constantFrom(1e308, -0, 2 ** 53, "", "\ud800", "\u0000", "\u202e", "__proto__", [[[]]], {}, { __proto__: 1 }),
);
const field = <T>(good: fc.Arbitrary<T>) =>
  fc.oneof({ weight: 25, arbitrary: good as fc.Arbitrary<unknown> }, { weight: 1, arbitrary: anything });
const text = fc.string({ unit: "binary", maxLength: 12 });
const parts = fc.array(fc.record({ type: fc.constantFrom("text", "text", "text", "image_url"), text }), {
  maxLength: 3,
});

const message = fc.record({
  role: field(fc.constantFrom("system", "developer", "user", "assistant", "tool")),
  content: field(fc.oneof(text, parts, fc.constant(null), fc.constant("<|im_end|>{{ 7 * 7 }}{% raw %}"))),
  name: field(fc.constant(undefined)),
  tool_calls: field(fc.constantFrom(undefined, [{ function: { name: "f", arguments: "{" } }], [{}], [])),
}, { requiredKeys: ["role", "content"] });

const chat = fc.record({
  model: fc.constant("mock"),
  messages: field(fc.array(message, { minLength: 1, maxLength: 4 })),
  max_tokens: field(fc.integer({ min: 0, max: 20 })),
  max_completion_tokens: field(fc.integer({ min: 0, max: 20 })),
  temperature: field(fc.double({ min: 0, max: 2, noNaN: true })),
  n: field(fc.integer({ min: 1, max: 3 })),
  stop: field(fc.constantFrom("a", ["b", "c"], null)),
  logprobs: field(fc.boolean()),
  top_logprobs: field(fc.constant(undefined)),
  tools: field(fc.constantFrom(undefined, [], [{ type: "function", function: { name: "f" } }])),
  tool_choice: field(fc.constantFrom("auto", "none", undefined)),
  response_format: field(fc.constantFrom(undefined, { type: "text" })),
  chat_template_kwargs: field(fc.constantFrom(undefined, { messages: [], bos_token: 3 })),
  continue_final_message: field(fc.constant(false)),
  stream: field(fc.boolean()),
}, { requiredKeys: ["model", "messages"] });

const TEMPLATE =
  "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}" +
  "[{{ m.role | upper }}]{{ m.content | trim }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}{% endfor %}";

async function answered(mock: Mocked, body: unknown, path: string): Promise<number> {
  const response = await post(mock.app, body, {}, path);
  await inForm(response);
  return response.status;
}

Deno.test("whatever a chat says, it is answered or refused in form", async () => {
  for (const chatOf of [await readChat("", {}, "chatml"), await readChat("/nowhere", { chat_template: TEMPLATE })]) {
    await using mock = await serveMock({ contextLength: 200 }, { chat: chatOf });
    const seen = new Map<number, number>();
    await fc.assert(
      fc.asyncProperty(chat, async (body) => {
        const status = await answered(mock, body, "/v1/chat/completions");
        seen.set(status, (seen.get(status) ?? 0) + 1);
      }),
      { numRuns: 400 },
    );
    assert.ok(seen.get(200)! > 50 && seen.get(400)! > 20, `Both kinds should occur: ${[...seen]}`);
  }
});

Deno.test("whatever is to be tokenized or put together again, the answer is in form", async () => {
  await using mock = await serveMock();
  const tokenize = fc.record({ model: field(fc.constantFrom("mock", undefined)), prompt: field(text) });
  const ids = fc.array(fc.integer({ min: -2, max: 300 }), { maxLength: 20 });
  const detokenize = fc.record({ model: field(fc.constant(undefined)), tokens: field(ids) });
  await fc.assert(fc.asyncProperty(tokenize, async (body) => void await answered(mock, body, "/tokenize")));
  await fc.assert(fc.asyncProperty(detokenize, async (body) => void await answered(mock, body, "/detokenize")));
});
