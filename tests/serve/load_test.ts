/** A real server under load: 64 clients at once, 1,000 requests of all kinds, none lost or mixed up, each answered as alone. */
import assert from "node:assert/strict";
import { openModel } from "../../serve/open_model.ts";
import { startServer } from "../../serve/server.ts";
import { modelFolder } from "./model_folder.ts";
import { fits } from "./schemas.ts";
import { readEvents } from "./serving.ts";

const CLIENTS = 64;
const REQUESTS = 1000;
const KINDS = 50;

/** Differences of sums of size 10 over some 500 f32 roundings: the bound of the engine's own tests. */
const TOLERANCE = 1e-4;

interface Choice {
  readonly text: string;
  readonly finish_reason: string;
  readonly logprobs: {
    readonly tokens: string[];
    readonly token_logprobs: number[];
    readonly top_logprobs: Record<string, number>[];
  };
}

interface Answer {
  readonly choices: readonly Choice[];
  readonly completion_tokens: number;
}

type Body = Readonly<Record<string, unknown>>;

/** Requests that differ in length, sampling, stops, choices and form; a third share a long beginning. */
function kind(i: number): Body {
  const shared = "The same start. ";
  const wishes: Body[] = [
    { temperature: 0 },
    { temperature: 0.9, top_p: 0.9 },
    { temperature: 1.2, top_k: 20, n: 2 },
    { temperature: 0, frequency_penalty: 0.5, logit_bias: { "7": 2 } },
    { temperature: 1, min_p: 0.05, stop: ["e", "zq"], min_tokens: 3 },
  ];
  return {
    model: "tiny",
    prompt: (i % 3 === 0 ? shared : "") + "x".repeat(1 + (i * 7) % 5) + i,
    max_tokens: 3 + (i * 5) % 14,
    seed: 1000 + i,
    logprobs: 5,
    ignore_eos: true,
    stream: i % 2 === 0,
    ...wishes[i % wishes.length],
  };
}

async function ask(url: string, body: Body): Promise<Answer> {
  const headers = { "content-type": "application/json" };
  const options = body.stream ? { stream_options: { include_usage: true } } : {};
  const response = await fetch(`${url}/v1/completions`, {
    method: "POST",
    headers,
    body: JSON.stringify({ ...body, ...options }),
  });
  const text = await response.text();
  assert.equal(response.status, 200, text);
  if (!body.stream) {
    const whole = JSON.parse(text);
    fits("Completion", whole);
    return { choices: whole.choices, completion_tokens: whole.usage.completion_tokens };
  }
  const events = readEvents(text);
  assert.equal(events.pop(), "[DONE]");
  const parsed = events.map((event) => JSON.parse(event));
  for (const event of parsed) fits("CompletionEvent", event);
  const { usage } = parsed.pop();
  const choices: Choice[] = [];
  for (const { choices: [part] } of parsed) choices[part.index] = joined(choices[part.index], part);
  return { choices, completion_tokens: usage.completion_tokens };
}

function joined(before: Choice | undefined, part: Choice): Choice {
  if (!before) return part;
  const [a, b] = [before.logprobs, part.logprobs];
  return {
    text: before.text + part.text,
    finish_reason: part.finish_reason,
    logprobs: {
      tokens: [...a.tokens, ...b.tokens],
      token_logprobs: [...a.token_logprobs, ...b.token_logprobs],
      top_logprobs: [...a.top_logprobs, ...b.top_logprobs],
    },
  };
}

/** The same tokens, or from the first other one on a token as likely, within the tolerance. */
function same(got: Answer, alone: Answer, label: string): void {
  assert.equal(got.choices.length, alone.choices.length, label);
  got.choices.forEach((choice, c) => {
    const expected = alone.choices[c];
    const { tokens } = choice.logprobs;
    const other = tokens.findIndex((token, i) => token !== expected.logprobs.tokens[i]);
    const count = other < 0 ? tokens.length : other + 1;
    for (let i = 0; i < count; i++) {
      const difference = Math.abs(choice.logprobs.token_logprobs[i] - expected.logprobs.token_logprobs[i]);
      assert.ok(difference <= TOLERANCE, `${label}: token ${i} of choice ${c} differs by ${difference}`);
    }
    if (other >= 0) return;
    assert.deepEqual([choice.text, choice.finish_reason], [expected.text, expected.finish_reason], label);
    assert.equal(got.completion_tokens, alone.completion_tokens, label);
  });
}

Deno.test("64 clients and 1,000 requests: each gets its own answer, as alone", async () => {
  await using folder = await modelFolder();
  await using model = await openModel(folder.path);
  await using server = await startServer({ hostname: "127.0.0.1", port: 0, model });
  const kinds = Array.from({ length: KINDS }, (_, i) => kind(i));
  const alone: Answer[] = [];
  for (const body of kinds) alone.push(await ask(server.url, body));
  let [next, most] = [0, 0];
  const client = async () => {
    while (next < REQUESTS) {
      const i = next++;
      const which = (i * 17) % KINDS; // neighbours differ
      same(await ask(server.url, kinds[which]), alone[which], `request ${i} of kind ${which}`);
      most = Math.max(most, model.engine.stats?.running ?? 0);
    }
  };
  await Promise.all(Array.from({ length: CLIENTS }, client));
  assert.ok(most > 30, `${most} ran at once`);
  await new Promise((resolve) => setTimeout(resolve, 500)); // statistics come five times a second
  const { running, waiting, blocks, freeBlocks } = model.engine.stats!;
  assert.deepEqual([running, waiting, freeBlocks], [0, 0, blocks]);
});
