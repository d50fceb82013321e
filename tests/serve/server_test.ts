/** The server on a real socket: the openai client, curl, closing. */
import assert from "node:assert/strict";
import OpenAI from "openai";
import { UserError } from "../../model/errors.ts";
import { curlCommand, type RunningServer, startServer } from "../../serve/server.ts";
import { describeSpeed, writeCompletion } from "../../serve/terminal.ts";
import { type MockEngine, mockEngine, type MockOptions } from "./mock_engine.ts";
import { bytes, readEvents, saying, until } from "./serving.ts";

interface Served extends AsyncDisposable {
  readonly server: RunningServer;
  readonly engine: MockEngine;
  readonly client: OpenAI;
}

const mockModel = (engine: MockEngine, name = "mock") => ({
  name,
  engine,
  tokenizer: bytes,
  [Symbol.asyncDispose]: () => engine[Symbol.asyncDispose](),
});

const source = (open: () => Promise<ReturnType<typeof mockModel>>, name = "mock") => ({ name, open });

const listen = (engine: MockEngine, name?: string) =>
  startServer({ hostname: "127.0.0.1", port: 0, model: source(() => Promise.resolve(mockModel(engine, name)), name) });

async function serve(options: MockOptions = {}, name?: string): Promise<Served> {
  const engine = mockEngine(options);
  const server = await listen(engine, name);
  const client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "none", maxRetries: 0 });
  return { server, engine, client, [Symbol.asyncDispose]: () => server[Symbol.asyncDispose]() };
}

Deno.test("the openai client gets whole completions, models and typed errors", async () => {
  await using served = await serve(saying("Hello 😀"), "org/mock");
  const { client } = served;
  const answer = await client.completions.create({
    model: "org/mock",
    prompt: "x",
    max_tokens: 50,
    logprobs: 2,
    n: 2,
    seed: 1,
  });
  assert.deepEqual(answer.choices.map((choice) => choice.text), ["Hello 😀", "Hello 😀"]);
  assert.equal(answer.choices[0].finish_reason, "stop");
  assert.equal(answer.choices[0].logprobs?.tokens?.length, 10);
  assert.equal(answer.usage?.total_tokens, 23);
  const models = [];
  for await (const model of client.models.list()) models.push(model.id);
  assert.deepEqual(models, ["org/mock"]);
  assert.equal((await client.models.retrieve("org/mock")).id, "org/mock");
  await assert.rejects(client.completions.create({ model: "other", prompt: "x" }), OpenAI.NotFoundError);
  const wrong = client.completions.create({ model: "org/mock", prompt: "x", temperature: 3 });
  await assert.rejects(wrong, (error) => error instanceof OpenAI.BadRequestError && error.param === "temperature");
});

Deno.test("the openai client streams, with usage", async () => {
  await using served = await serve({ ...saying("one two STOP three"), delay: 1 });
  const events = await served.client.completions.create({
    model: "mock",
    prompt: "x",
    max_tokens: 50,
    stop: ["STOP"],
    stream: true,
    stream_options: { include_usage: true },
  });
  let text = "";
  let usage;
  for await (const event of events) {
    text += event.choices[0]?.text ?? "";
    usage = event.usage;
  }
  assert.equal(text, "one two ");
  assert.deepEqual(usage, { prompt_tokens: 1, completion_tokens: 12, total_tokens: 13 });
});

Deno.test("the openai client's abort ends the generation, streamed or whole", async () => {
  await using served = await serve({ delay: 3 });
  const events = await served.client.completions.create({ model: "mock", prompt: "x", max_tokens: 200, stream: true });
  for await (const _ of events) break;
  await until(() => served.engine.calls[0].aborted);
  const controller = new AbortController();
  const whole = served.client.completions.create({ model: "mock", prompt: "x", max_tokens: 200 }, {
    signal: controller.signal,
  });
  await until(() => served.engine.calls[1]?.yielded > 2);
  controller.abort();
  await assert.rejects(whole, OpenAI.APIUserAbortError);
  await until(() => served.engine.calls[1].aborted);
  assert.ok(served.engine.calls.every((call) => call.yielded < 60));
});

Deno.test("a socket that is just closed ends the generation, however the body was sent", async () => {
  await using served = await serve({ delay: 3 });
  const { port } = new URL(served.server.url);
  for (const [stream, chunked] of [[true, false], [false, false], [true, true], [false, true]]) {
    using socket = await Deno.connect({ hostname: "127.0.0.1", port: Number(port) });
    const body = JSON.stringify({ model: "mock", prompt: "x", max_tokens: 200, stream });
    const head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
    const rest = chunked
      ? `Transfer-Encoding: chunked\r\n\r\n${body.length.toString(16)}\r\n${body}\r\n0\r\n\r\n`
      : `Content-Length: ${body.length}\r\n\r\n${body}`;
    const before = served.engine.calls.length;
    await socket.write(new TextEncoder().encode(head + rest));
    await until(() => served.engine.calls.length > before && served.engine.calls[before].yielded > 2);
  }
  await until(() => served.engine.calls.every((call) => call.aborted));
  assert.ok(served.engine.calls.every((call) => call.yielded < 60));
});

Deno.test("events arrive one by one, while the engine still works", async () => {
  await using served = await serve({ delay: 10 });
  const response = await fetch(`${served.server.url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ model: "mock", prompt: "a", max_tokens: 8, stream: true }),
  });
  assert.match(response.headers.get("content-type")!, /^text\/event-stream/);
  let arrivals = 0;
  let text = "";
  for await (const chunk of response.body!.pipeThrough(new TextDecoderStream())) {
    if (arrivals++ === 0) assert.ok(served.engine.calls[0].yielded < 4);
    text += chunk;
  }
  assert.ok(arrivals >= 6, `${arrivals} arrivals`);
  assert.equal(readEvents(text).at(-1), "[DONE]");
});

/** A bare machine has none: the command then throws before there is a promise. */
async function works(command: string): Promise<boolean> {
  try {
    return (await new Deno.Command(command, { args: ["--version"], stdout: "null" }).output()).success;
  } catch {
    return false;
  }
}

const hasCurl = await works("curl");

Deno.test({
  name: "the printed curl command works as pasted",
  ignore: !hasCurl,
  async fn() {
    await using served = await serve(saying("Hello"), "it's a mock");
    const { stdout } = await new Deno.Command("sh", { args: ["-c", curlCommand(served.server.url, "it's a mock")] })
      .output();
    const events = readEvents(new TextDecoder().decode(stdout));
    assert.equal(events.pop(), "[DONE]");
    assert.equal(events.map((event) => JSON.parse(event).choices[0].text).join(""), "Hello");
  },
});

Deno.test("many requests at once all get their own answer", async () => {
  await using served = await serve({ delay: 1 });
  const letters = [..."abcdefghijklmnop"];
  const answers = await Promise.all(
    letters.map((prompt) => served.client.completions.create({ model: "mock", prompt, max_tokens: 3 })),
  );
  const expected = letters.map((letter) =>
    String.fromCharCode(...[1, 2, 3].map((step) => letter.charCodeAt(0) + step))
  );
  assert.deepEqual(answers.map((answer) => answer.choices[0].text), expected);
});

Deno.test("while the model loads every request gets 503; a model that can't be opened frees the port", async () => {
  const { promise: opened, resolve: open, reject: fail } = Promise.withResolvers<ReturnType<typeof mockModel>>();
  using probe = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = probe.addr;
  probe.close();
  const starting = startServer({ hostname: "127.0.0.1", port, model: source(() => opened) });
  const early = await fetch(`http://127.0.0.1:${port}/health`);
  assert.equal(early.status, 503);
  assert.equal((await early.json()).error.code, "model_loading");
  open(mockModel(mockEngine()));
  const server = await starting;
  const ready = await fetch(`${server.url}/health`);
  assert.deepEqual([ready.status, await ready.json()], [200, { status: "ok" }]);
  await server[Symbol.asyncDispose]();
  fail();
  const broken = startServer({
    hostname: "127.0.0.1",
    port,
    model: source(() => Promise.reject(new UserError("no weights"))),
  });
  await assert.rejects(broken, /no weights/);
  using again = Deno.listen({ hostname: "127.0.0.1", port });
  assert.equal(again.addr.port, port);
});

Deno.test("a port in use is said in one line", async () => {
  await using served = await serve();
  const port = Number(new URL(served.server.url).port);
  const second = startServer({ hostname: "127.0.0.1", port, model: source(() => assert.fail("It must not load")) });
  await assert.rejects(
    second,
    (error) => error instanceof UserError && error.exitCode === 1 && error.message.includes(String(port)),
  );
});

Deno.test("closing ends streams with an error event, frees the port and closes the model", async () => {
  const engine = mockEngine({ delay: 3 });
  const server = await listen(engine);
  const response = await fetch(`${server.url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ model: "mock", prompt: "a", max_tokens: 200, stream: true }),
  });
  const events = response.text();
  await until(() => engine.calls[0]?.yielded > 2);
  const start = performance.now();
  await server[Symbol.asyncDispose]();
  assert.ok(performance.now() - start < 2000);
  assert.match(await events, /model_unavailable.*\n\ndata: \[DONE\]\n\n$/);
  assert.ok(engine.disposed && engine.calls[0].aborted);
  await assert.rejects(fetch(`${server.url}/health`));
});

Deno.test("a completion is written to the terminal piece by piece", async () => {
  const pieces: string[] = [];
  const model = mockModel(mockEngine(saying("Zwölf 😀")));
  const signal = new AbortController().signal;
  const written = await writeCompletion(model, { prompt: "x", echo: true }, (text) => pieces.push(text), signal);
  assert.equal(pieces.join(""), "xZwölf 😀");
  assert.ok(pieces.length > 5 && pieces.every((piece) => piece.isWellFormed()));
  assert.deepEqual([written.text, written.finish_reason, written.completion_tokens], ["xZwölf 😀", "stop", 12]);
  assert.match(
    describeSpeed(written),
    /^12 tokens in \d+\.\d\d s: the first after \d+\.\d\d s, then \d+\.\d tokens\/s$/,
  );
  const short = await writeCompletion(
    mockModel(mockEngine({ contextLength: 10 })),
    { prompt: "abc" },
    () => {},
    signal,
  );
  assert.deepEqual([short.completion_tokens, short.finish_reason], [7, "length"]);
  const long = writeCompletion(mockModel(mockEngine({ contextLength: 2 })), { prompt: "abc" }, () => {}, signal);
  await assert.rejects(long, (error) => error instanceof UserError && error.exitCode === 2);
});
