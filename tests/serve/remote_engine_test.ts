/** An engine in a Worker: the same answers, aborts, errors and ends as here. */
import assert from "node:assert/strict";
import { UserError } from "../../model/errors.ts";
import { defaultSampling, type Engine, type Generated } from "../../model/generate.ts";
import { openRemoteEngine } from "../../serve/remote_engine.ts";
import { mockEngine } from "./mock_engine.ts";
import { complete, post, serveMock } from "./serving.ts";

const open = (folder: string) =>
  openRemoteEngine(new Worker(new URL("./mock_worker.ts", import.meta.url), { type: "module" }), folder);

async function all(tokens: AsyncIterable<Generated>): Promise<Generated[]> {
  const list = [];
  for await (const token of tokens) list.push(token);
  return list;
}

const prompt = Uint32Array.of(97, 98);
const some = { ...defaultSampling, maxTokens: 12, stopTokens: [105], logprobs: 2, logitBias: new Map([[1, 2]]) };

/** What the engine in the Worker has done: tokens yielded by each call. */
const inside = async (engine: Engine) => (await engine.score(Uint32Array.of(0), 0)).map((entry) => entry!.token);

Deno.test("an engine in a Worker says what the same engine says here", async () => {
  await using remote = await open("0");
  const local = mockEngine({ contextLength: 5000 });
  assert.deepEqual([remote.contextLength, remote.vocabSize], [5000, 257]);
  assert.deepEqual(await all(remote.generate(prompt, some)), await all(local.generate(prompt, some)));
  assert.deepEqual(await remote.score(prompt, 3), await local.score(prompt, 3));
  assert.ok(remote.healthy);
});

Deno.test("requests side by side get their own answers", async () => {
  await using remote = await open("1");
  const [first, second, scores] = await Promise.all([
    all(remote.generate(Uint32Array.of(97), some)),
    all(remote.generate(Uint32Array.of(65), some)),
    remote.score(prompt, 1),
  ]);
  assert.deepEqual(first.map(({ token }) => token), [98, 99, 100, 101, 102, 103, 104, 105]);
  assert.deepEqual(second.map(({ token }) => token), [66, 67, 68, 69, 70, 71, 72, 73, 74, 75, 76, 77]);
  assert.equal(scores.length, 2);
  assert.deepEqual(await inside(remote), [8, 12]);
});

Deno.test("an abort crosses to an engine that never waits, and to a request just made", async () => {
  await using remote = await open("0");
  const long = { ...defaultSampling, maxTokens: 4000 };
  const abort = new AbortController();
  const waiting = new AbortController();
  const tokens: number[] = [];
  const first = (async () => {
    for await (const { token } of remote.generate(prompt, long, abort.signal)) {
      if (tokens.push(token) === 5) abort.abort();
    }
  })();
  const second = all(remote.generate(prompt, long, waiting.signal));
  waiting.abort();
  assert.deepEqual(await second, []);
  await first;
  assert.equal(tokens.length, 5);
  const yielded = await inside(remote);
  assert.ok(yielded.every((count) => count < 3000), `They went on to ${yielded}`);
  assert.deepEqual(await all(remote.generate(prompt, long, AbortSignal.abort())), []);
});

Deno.test("leaving the loop aborts too", async () => {
  await using remote = await open("1");
  for await (const _ of remote.generate(prompt, { ...defaultSampling, maxTokens: 1000 })) break;
  assert.ok((await inside(remote))[0] < 50);
});

Deno.test("errors keep their kind across", async () => {
  await assert.rejects(open("missing"), (error) => error instanceof UserError && error.exitCode === 4);
  await using picky = await open("picky");
  await assert.rejects(all(picky.generate(prompt, some)), RangeError);
  assert.ok(picky.healthy);
  await using failing = await open("failing");
  await assert.rejects(all(failing.generate(prompt, some)), /device lost/);
  assert.ok(!failing.healthy);
  assert.match((await failing.failure).message, /device lost/);
});

Deno.test("a Worker that dies fails what waits for it, and all that comes later", async () => {
  await using exploding = await open("exploding");
  await assert.rejects(all(exploding.generate(prompt, some)), /driver gone/);
  assert.ok(!exploding.healthy);
  await assert.rejects(all(exploding.generate(prompt, some)), /driver gone/);
  await assert.rejects(exploding.score(prompt, 1), /driver gone/);
  await using mock = await serveMock({}, { engine: exploding, healthy: () => exploding.healthy });
  assert.equal((await mock.app.request("/health")).status, 503);
  assert.equal((await post(mock.app, { model: "mock", prompt: "a" })).status, 503);
});

Deno.test("closing ends what runs", async () => {
  const remote = await open("2");
  const running = all(remote.generate(prompt, { ...defaultSampling, maxTokens: 4000 }));
  const ended = running.then(() => "ended", (error) => error.message);
  await new Promise((resolve) => setTimeout(resolve, 20));
  await remote[Symbol.asyncDispose]();
  await ended;
  assert.ok(!remote.healthy);
  await assert.rejects(remote.score(prompt, 1), /closed/);
});

Deno.test("two HTTP requests at once are both answered right", async () => {
  await using remote = await open("1");
  await using mock = await serveMock({}, { engine: remote, healthy: () => remote.healthy });
  const [a, b] = await Promise.all([
    complete(mock.app, { prompt: "a", max_tokens: 10, n: 2 }),
    complete(mock.app, { prompt: "A", max_tokens: 10, echo: true, logprobs: 1 }),
  ]);
  assert.deepEqual(a.choices.map((choice) => choice.text), ["bcdefghijk", "bcdefghijk"]);
  assert.equal(b.choices[0].text, "ABCDEFGHIJK");
});
