/** Several engines as one: who gets a request, what a dead one costs, sums. */
import assert from "node:assert/strict";
import { defaultSampling, type Engine, type Generated } from "../../model/generate.ts";
import { Fleet } from "../../serve/fleet.ts";
import { openModel } from "../../serve/open_model.ts";
import { mockEngine, type MockOptions } from "./mock_engine.ts";
import { modelFolder } from "./model_folder.ts";

const member = (options: MockOptions = { delay: 1 }, capacity = 2) =>
  Object.assign(mockEngine(options), { healthy: true, capacity });

async function all(engine: Engine, maxTokens = 4, prompt = 97, signal?: AbortSignal): Promise<Generated[]> {
  const tokens = [];
  const sampling = { ...defaultSampling, maxTokens };
  for await (const token of engine.generate(Uint32Array.of(prompt), sampling, signal)) tokens.push(token);
  return tokens;
}

Deno.test("requests go where least is to be done, by places", async () => {
  const [small, large] = [member({ delay: 5 }, 1), member({ delay: 5 }, 3)];
  await using fleet = new Fleet([small, large]);
  assert.equal(fleet.capacity, 4);
  await Promise.all(Array.from({ length: 8 }, () => all(fleet)));
  assert.deepEqual([small.calls.length, large.calls.length], [2, 6]);
  await all(fleet);
  assert.equal(small.calls.length, 3); // all were idle again
});

Deno.test("none is lost or mixed up, whoever leaves", async () => {
  const engines = [member(), member(), member()];
  const fleet = new Fleet(engines);
  const left = new AbortController();
  const answers = await Promise.all(Array.from({ length: 60 }, async (_, i) => {
    if (i % 4 === 0) setTimeout(() => left.abort(), 3);
    return await all(fleet, 10, i, i % 4 === 0 ? left.signal : undefined);
  }));
  for (const [i, tokens] of answers.entries()) {
    const expected = Array.from({ length: 10 }, (_, k) => i + k + 1);
    const got = tokens.map(({ token }) => token);
    assert.deepEqual(got, i % 4 === 0 ? expected.slice(0, got.length) : expected);
  }
  for (const { calls } of engines) assert.equal(calls.length, 20);
  await fleet[Symbol.asyncDispose]();
  assert.ok(engines.every(({ disposed }) => disposed));
});

Deno.test("one that is out of order fails its own requests and gets no more until it is back", async () => {
  let broken = true;
  const bad = member({ fail: () => broken ? new Error("device lost") : undefined });
  const good = member();
  await using fleet = new Fleet([bad, good]);
  await assert.rejects(all(fleet), /device lost/);
  bad.healthy = false;
  await Promise.all([all(fleet), all(fleet), all(fleet)]);
  assert.deepEqual([bad.calls.length, good.calls.length], [1, 3]);
  good.healthy = false;
  assert.ok(!fleet.healthy);
  await assert.rejects(all(fleet), /device lost/);
  broken = false;
  bad.healthy = true;
  assert.ok(fleet.healthy);
  assert.equal((await all(fleet)).length, 4);
});

Deno.test("statistics are sums", () => {
  const stats = {
    running: 1,
    waiting: 2,
    blocks: 3,
    freeBlocks: 4,
    steps: 5,
    rows: 6,
    stepSizes: [1, 2],
    reusedTokens: 7,
    preemptions: 8,
  };
  const other = { ...stats, stepSizes: [1, 2, 3], restarts: 1 };
  const fleet = new Fleet([Object.assign(member(), { stats }), member(), Object.assign(member(), { stats: other })]);
  assert.deepEqual(fleet.stats, {
    running: 2,
    waiting: 4,
    blocks: 6,
    freeBlocks: 8,
    steps: 10,
    rows: 12,
    stepSizes: [2, 4, 3],
    reusedTokens: 14,
    preemptions: 16,
    restarts: 1,
  });
  assert.throws(() => new Fleet([]), RangeError);
});

Deno.test("a model on two engines answers the same from both", async () => {
  await using folder = await modelFolder();
  await using model = await openModel(folder.path, { adapters: [undefined, undefined] });
  const [first, second] = await Promise.all([all(model.engine, 8), all(model.engine, 8)]);
  assert.deepEqual(first, second);
  assert.equal(first.length, 8);
  assert.equal(model.engine.capacity, 128);
});
