/** An engine that is opened again when it fails: what requests see meanwhile, when it is tried, how it ends. */
import assert from "node:assert/strict";
import { defaultSampling, type Engine } from "../../model/generate.ts";
import { createApp } from "../../serve/app.ts";
import { type FragileEngine, openLasting } from "../../serve/lasting_engine.ts";
import { openRemoteEngine } from "../../serve/remote_engine.ts";
import { type MockEngine, mockEngine } from "./mock_engine.ts";
import { bytes, post, readEvents, until } from "./serving.ts";

interface Fragile extends FragileEngine, MockEngine {
  fail(message: string): void;
}

function fragile(): Fragile {
  const { promise: failure, resolve } = Promise.withResolvers<Error>();
  return Object.assign(mockEngine({ delay: 1 }), { failure, fail: (message: string) => resolve(new Error(message)) });
}

const delays = [0, 5];

async function textOf(engine: Engine): Promise<number> {
  let count = 0;
  for await (const _ of engine.generate(Uint32Array.of(97), { ...defaultSampling, maxTokens: 4 })) count++;
  return count;
}

Deno.test("a failed engine is closed and opened again; it says so, and counts it", async () => {
  const engines: Fragile[] = [];
  const said: string[] = [];
  const open = () => Promise.resolve(engines[engines.push(fragile()) - 1]);
  await using lasting = await openLasting({ open, say: (line) => said.push(line), delays });
  assert.equal(await textOf(lasting), 4);
  engines[0].fail("device lost");
  await until(() => !lasting.healthy || engines.length === 2);
  await until(() => lasting.healthy);
  assert.ok(engines[0].disposed && !engines[1].disposed);
  assert.equal(await textOf(lasting), 4);
  assert.deepEqual(said, ["The engine failed (device lost); it is opened again", "The engine is open again"]);
  engines[0].fail("again"); // the old one is nobody's business now
  await new Promise((resolve) => setTimeout(resolve, 5));
  assert.equal(engines.length, 2);
});

Deno.test("opening is tried until it succeeds; meanwhile nothing is answered", async () => {
  const first = fragile();
  let tries = 0;
  const open = () => {
    tries++;
    if (tries === 1) return Promise.resolve(first);
    return tries < 5 ? Promise.reject(new Error("no memory")) : Promise.resolve(fragile());
  };
  await using lasting = await openLasting({ open, say: () => {}, delays });
  const model = { name: "mock", engine: lasting, tokenizer: bytes, healthy: () => lasting.healthy };
  await using app = await createApp({ model });
  first.fail("device lost");
  await until(() => !lasting.healthy);
  const refused = await post(app, { model: "mock", prompt: "a" });
  assert.deepEqual([refused.status, refused.headers.has("retry-after")], [503, true]);
  assert.equal((await app.request("/ready")).status, 503);
  assert.throws(() => lasting.generate(Uint32Array.of(97), defaultSampling), /opened again/);
  await until(() => lasting.healthy);
  assert.equal(tries, 5);
  assert.equal((await post(app, { model: "mock", prompt: "a" })).status, 200);
});

Deno.test("closing ends the tries, and an engine that opens too late", async () => {
  const [first, late] = [fragile(), fragile()];
  const opening = Promise.withResolvers<Fragile>();
  let tries = 0;
  const open = () => tries++ === 0 ? Promise.resolve(first) : opening.promise;
  const lasting = await openLasting({ open, say: () => {}, delays: [0] });
  first.fail("device lost");
  await until(() => tries === 2);
  const closed = lasting[Symbol.asyncDispose]();
  opening.resolve(late);
  await closed;
  assert.ok(first.disposed && late.disposed);
});

Deno.test("a Worker that dies ends its requests with an error event; the next ones are answered by another Worker", async () => {
  let count = 0;
  const open = () =>
    openRemoteEngine(
      new Worker(new URL("./mock_worker.ts", import.meta.url), { type: "module" }),
      count++ === 0 ? "exploding" : "0",
    );
  await using lasting = await openLasting({ open, say: () => {}, delays });
  const model = { name: "mock", engine: lasting, tokenizer: bytes, healthy: () => lasting.healthy };
  await using app = await createApp({ model, log: { info() {}, error() {} } });
  const body = { model: "mock", prompt: "a", max_tokens: 20 };
  const [streamed, whole] = await Promise.all([post(app, { ...body, stream: true }), post(app, body)]);
  const events = readEvents(await streamed.text());
  assert.equal(JSON.parse(events.at(-2)!).error.code, "engine_error");
  assert.equal(whole.status, 500);
  await until(() => lasting.healthy);
  assert.equal((await post(app, body)).status, 200);
  assert.equal(count, 2);
});
