/** A folder served with a real engine: PyTorch's numbers, both commands, the openai client. */
import assert from "node:assert/strict";
import OpenAI from "openai";
import { readSafetensors } from "../../model/safetensors.ts";
import { createApp } from "../../serve/app.ts";
import { assertClose } from "../close.ts";
import { modelFolder } from "./model_folder.ts";
import { post } from "./serving.ts";

const fixture = new URL("../fixtures/gpt2-tiny/", import.meta.url);
const vocabSize = 193;

/** Log-softmax of a row of logits, in f64. */
function logSoftmax(logits: ArrayLike<number>): number[] {
  const values = Array.from(logits);
  const most = Math.max(...values);
  const sum = values.reduce((total, value) => total + Math.exp(value - most), 0);
  return values.map((value) => value - most - Math.log(sum));
}

/** The first row of PyTorch's batch: tokens, and log-probabilities of what may come after each. */
async function torchRow(): Promise<{ tokens: number[]; logprobs: number[][] }> {
  const expected = await readSafetensors(new URL("expected.safetensors", fixture).pathname);
  const { data: logitBytes, shape: [, length] } = expected.get("logits")!;
  const logits = new Float32Array(logitBytes.slice().buffer);
  const tokens = new Int32Array(expected.get("tokens")!.data.slice().buffer).subarray(0, length);
  const row = (i: number) => logSoftmax(logits.subarray(i * vocabSize, (i + 1) * vocabSize));
  return { tokens: [...tokens], logprobs: Array.from(tokens, (_, i) => row(i)) };
}

Deno.test("a folder is served with PyTorch's numbers", async () => {
  await using folder = await modelFolder();
  await using app = await createApp({ model: folder.path + "/" });
  const { tokens, logprobs } = await torchRow();

  const scored = await post(app, { model: "tiny", prompt: tokens, max_tokens: 0, echo: true, logprobs: 5 });
  const { choices: [echoed] } = await scored.json();
  assert.equal(echoed.logprobs.token_logprobs[0], null);
  const expected = tokens.slice(1).map((token, i) => logprobs[i][token]);
  assertClose(echoed.logprobs.token_logprobs.slice(1), expected, { atol: 1e-4, rtol: 1e-4 }, "log-probabilities");
  const best = logprobs.map((row) => Math.max(...row));
  const tops = echoed.logprobs.top_logprobs.slice(1).map((top: Record<string, number>) =>
    Math.max(...Object.values(top))
  );
  assertClose(tops, best.slice(0, -1), { atol: 1e-4, rtol: 1e-4 }, "best log-probabilities");

  const prefix = tokens.slice(0, 20);
  const greedy = await (await post(app, { model: "tiny", prompt: prefix, max_tokens: 1, temperature: 0, logprobs: 1 }))
    .json();
  assertClose(greedy.choices[0].logprobs.token_logprobs, [best[19]], { atol: 1e-4, rtol: 1e-4 }, "greedy");
});

Deno.test("seeds repeat, streams equal wholes, two at once are right", async () => {
  await using folder = await modelFolder();
  await using app = await createApp({ model: `other/name=${folder.path}` });
  const ask = async (fields: Record<string, unknown>) => {
    const response = await post(app, { model: "other/name", prompt: "Hello", max_tokens: 20, ...fields });
    assert.equal(response.status, 200);
    return (await response.json()).choices.map((choice: { text: string }) => choice.text);
  };
  const alone = [await ask({ seed: 1, n: 2 }), await ask({ seed: 3, top_k: 5, prompt: "Bye" })];
  const together = await Promise.all([ask({ seed: 1, n: 2 }), ask({ seed: 3, top_k: 5, prompt: "Bye" })]);
  assert.deepEqual(together, alone);
  assert.notEqual(alone[0][0], alone[0][1]);
  assert.deepEqual(await ask({ seed: 2 }), [alone[0][1]]);

  const outside = await post(app, { model: "other/name", prompt: "é" });
  assert.deepEqual([outside.status, (await outside.json()).error.param], [400, "prompt"]);
  const empty = await post(app, { model: "other/name", prompt: "" }); // the byte tokenizer's end of text is no token of this model
  assert.equal(empty.status, 400);
  assert.equal((await app.request("/health")).status, 200);
});

Deno.test("the serve command: ready, answering the openai client, finishing its answer after SIGTERM", async () => {
  await using folder = await modelFolder();
  const main = new URL("../../serve/main.ts", import.meta.url).pathname;
  const args = ["run", "--no-prompt", "--no-check", "--allow-read", "--allow-env", "--allow-net", main, "serve"];
  const command = new Deno.Command(Deno.execPath(), {
    args: [...args, "--model", `named=${folder.path}`, "--port", "0"],
    stdout: "piped",
    stderr: "inherit",
  });
  await using process = command.spawn();
  let said = "";
  const reader = process.stdout.pipeThrough(new TextDecoderStream()).getReader();
  while (!said.includes("curl -N")) {
    const { done, value } = await reader.read();
    if (done) assert.fail(`The server ended: ${said}`);
    said += value;
  }
  const [url] = /http:\/\/127\.0\.0\.1:\d+/.exec(said)!;
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
  const answer = await client.completions.create({
    model: "named",
    prompt: "Hi",
    max_tokens: 8,
    temperature: 0,
    logit_bias: { "7": -100, "192": -100 },
  });
  assert.equal(answer.usage?.completion_tokens, 8);
  const stream = await client.completions.create({
    model: "named",
    prompt: "Hi",
    max_tokens: 8,
    temperature: 0,
    logit_bias: { "7": -100, "192": -100 },
    stream: true,
  });
  let text = "";
  for await (const event of stream) {
    if (text === "") process.kill("SIGTERM"); // what is under way is finished
    text += event.choices[0].text;
  }
  assert.equal(text, answer.choices[0].text);
  assert.equal((await process.status).code, 0);
  await reader.cancel();
});

Deno.test("the generate command writes the text, and its speed beside it", async () => {
  await using folder = await modelFolder();
  const main = new URL("../../serve/main.ts", import.meta.url).pathname;
  const args = ["run", "--no-prompt", "--no-check", "--allow-read", "--allow-env", main, "generate"];
  const more = ["--model", folder.path, "--prompt", "Hello", "--max-tokens", "10", "--seed", "5", "--echo"];
  const decoder = new TextDecoder();
  const run = async (extra: string[]) => {
    const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), { args: [...args, ...more, ...extra] })
      .output();
    assert.equal(code, 0, decoder.decode(stderr));
    return { out: decoder.decode(stdout), error: decoder.decode(stderr) };
  };
  const plain = await run([]);
  assert.match(plain.out, /^Hello/);
  assert.match(plain.error, /\d+ tokens in .* s.*\(seed 5\)/);
  const json = JSON.parse((await run(["--json"])).out);
  assert.equal(json.text + "\n", plain.out);
});
