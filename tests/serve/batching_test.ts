/** Many requests at once on a GPU: each gets its answer alone, with few blocks too; prefixes are shared, aborts leak nothing. */
import assert from "node:assert/strict";
import { defaultSampling, type Generated, type Sampling } from "../../model/generate.ts";
import { createModel, loadModel } from "../../model/load.ts";
import type { Model } from "../../model/model.ts";
import { type CachedEngine, createEngine, type EngineOptions } from "../../serve/engine.ts";
import { assertClose } from "../close.ts";
import { testDevice } from "../harness.ts";
import { config, TOLERANCE } from "./small_model.ts";

const FIXTURE = "tests/fixtures/gpt2-tiny";

/** Bytes of a block: keys and values of 16 positions in both layers. */
const BLOCK_BYTES = 2 * 2 * 16 * 48 * 4;

interface Ask {
  readonly prompt: Uint32Array;
  readonly sampling: Sampling;
}

const prompt = (length: number, seed: number) => Uint32Array.from({ length }, (_, i) => (i * 37 + seed * 11 + 3) % 193);

/** Every kind of wish in turn: greedy, seeded, truncated, with alternatives, with penalties. */
function asks(count: number, length: (i: number) => number, maxTokens: number): Ask[] {
  const wishes: Partial<Sampling>[] = [
    { temperature: 0 },
    { temperature: 0.9, topP: 0.9 },
    { temperature: 0, logprobs: 3 },
    { temperature: 1.2, topK: 20 },
    { temperature: 0.8, frequencyPenalty: 0.5, repetitionPenalty: 1.2, logitBias: new Map([[7, 2]]) },
  ];
  return Array.from({ length: count }, (_, i) => ({
    prompt: prompt(length(i), i),
    sampling: { ...defaultSampling, maxTokens, seed: 2 ** 33 + i, ...wishes[i % wishes.length] },
  }));
}

async function answer(engine: CachedEngine, { prompt, sampling }: Ask, signal?: AbortSignal): Promise<Generated[]> {
  const made: Generated[] = [];
  for await (const token of engine.generate(prompt, sampling, signal)) made.push(token);
  return made;
}

function sameAnswers(together: readonly Generated[][], alone: readonly Generated[][]): void {
  assert.equal(together.length, alone.length);
  together.forEach((made, i) => {
    const plain = (list: readonly Generated[]) =>
      list.map(({ token, finish, top }) => [token, finish, ...top.map(({ token }) => token)]);
    assert.deepEqual(plain(made), plain(alone[i]), `answer ${i}`);
    const logprobs = (list: readonly Generated[]) => list.map(({ logprob }) => logprob);
    assertClose(logprobs(made), logprobs(alone[i]), TOLERANCE, `log-probabilities of answer ${i}`);
  });
}

async function oneByOne(engine: CachedEngine, asks: readonly Ask[]): Promise<Generated[][]> {
  const answers: Generated[][] = [];
  for (const ask of asks) answers.push(await answer(engine, ask));
  return answers;
}

/** The answers of an engine that never runs two at once and never sees a prompt twice. */
async function alone(open: () => Model, asks: readonly Ask[]): Promise<Generated[][]> {
  using model = open();
  await using engine = createEngine(model, { maxSequences: 1 });
  return await oneByOne(engine, asks);
}

async function together(open: () => Model, asks: readonly Ask[], options: EngineOptions) {
  using model = open();
  await using engine = createEngine(model, options);
  const answers = await Promise.all(asks.map((ask) => answer(engine, ask)));
  assert.equal(engine.stats.freeBlocks, engine.stats.blocks, "no block leaks");
  assert.equal(engine.stats.running + engine.stats.waiting, 0);
  return { answers, stats: engine.stats };
}

Deno.test("8 and 64 requests at once are each answered as alone", async () => {
  const device = await testDevice();
  const open = await loadModel(device, FIXTURE);
  using model = open;
  await using engine = createEngine(model);
  for (const count of [8, 64]) {
    const wanted = asks(count, (i) => 1 + (i * 5) % 20, 20);
    const expected = await oneByOne(engine, wanted);
    const before = engine.stats.steps;
    sameAnswers(await Promise.all(wanted.map((ask) => answer(engine, ask))), expected);
    assert.ok(
      engine.stats.steps - before <= 24 + count / 8, // prompts first, in steps of 128 rows
      `${engine.stats.steps - before} steps for ${count} answers of 20 tokens`,
    );
    assert.equal(engine.stats.freeBlocks, engine.stats.blocks);
  }
});

Deno.test("long prompts beside short ones, in few rows a step, change no answer", async () => {
  const device = await testDevice();
  const open = () => createModel(device, config, { seed: 21 });
  const wanted = asks(12, (i) => [3, 120, 17, 64, 1][i % 5], 25);
  const { answers } = await together(open, wanted, { maxSequences: 5, maxBatchedTokens: 37 });
  sameAnswers(answers, await alone(open, wanted));
});

Deno.test("with too few blocks the youngest are computed again, with the same answers", async () => {
  const device = await testDevice();
  const open = () => createModel(device, config, { seed: 22 });
  const wanted = asks(8, (i) => 5 + i * 3, 60);
  const { answers, stats } = await together(open, wanted, { kvMemory: 12 * BLOCK_BYTES });
  assert.equal(stats.blocks, 12);
  assert.ok(stats.preemptions > 0, "none was preempted");
  sameAnswers(answers, await alone(open, wanted));
});

Deno.test("a batch-invariant engine gives the same bits alone, in company and after preemption", async () => {
  const device = await testDevice();
  const open = () => createModel(device, config, { seed: 24 });
  const wanted = asks(10, (i) => [3, 90, 17, 40, 1][i % 5], 30);
  const bits = (answers: readonly Generated[][]) =>
    answers.map((made) => made.map(({ token, logprob }) => [token, logprob]));
  const options = { batchInvariant: true };
  const { answers } = await together(open, wanted, options);
  const few = await together(open, wanted, { ...options, kvMemory: 14 * BLOCK_BYTES });
  assert.ok(few.stats.preemptions > 0, "none was preempted");
  using model = open();
  await using engine = createEngine(model, options);
  await engine.warm();
  const expected = bits(await oneByOne(engine, wanted));
  assert.deepEqual(bits(answers), expected);
  assert.deepEqual(bits(few.answers), expected);
  assert.equal(engine.stats.stepSizes.length, 5); // up to 16 rows
});

Deno.test("a shared beginning is computed once", async () => {
  const device = await testDevice();
  using model = createModel(device, config, { seed: 23 });
  await using engine = createEngine(model);
  const shared = prompt(96, 1);
  const wanted = asks(8, () => 1, 4).map(({ sampling }, i) => ({
    prompt: Uint32Array.of(...shared, i, i + 1),
    sampling,
  }));
  const first = await answer(engine, wanted[0]);
  const { rows, reusedTokens } = engine.stats;
  assert.equal(reusedTokens, 0);
  const answers = await Promise.all(wanted.map((ask) => answer(engine, ask)));
  assert.equal(engine.stats.reusedTokens, 8 * 96);
  assert.ok(engine.stats.rows - rows <= 8 * (2 + 3), `${engine.stats.rows - rows} rows`);
  sameAnswers([answers[0]], [first]);
  sameAnswers(answers, await alone(() => createModel(device, config, { seed: 23 }), wanted));
});

Deno.test("choices of one prompt compute it once, its last and partly filled block is copied", async () => {
  const device = await testDevice();
  const open = () => createModel(device, config, { seed: 25 });
  const one = prompt(43, 1); // two blocks, 10 positions, and the last one
  const wanted = asks(12, () => 1, 20).map(({ sampling }) => ({ prompt: one, sampling }));
  const { answers, stats } = await together(open, wanted, {});
  sameAnswers(answers, await alone(open, wanted));
  assert.equal(stats.reusedTokens, 11 * 42);
  assert.equal(stats.rows, 43 + 11 + 12 * 19);
});

Deno.test("an abort frees its blocks at once and changes no other answer", async () => {
  const device = await testDevice();
  const open = () => createModel(device, config, { seed: 24 });
  const wanted = asks(8, (i) => 20 + i, 40);
  const expected = await alone(open, wanted);
  using model = open();
  await using engine = createEngine(model, { maxSequences: 4 });
  const gone = wanted.map(() => new AbortController());
  const first = engine.generate(wanted[0].prompt, wanted[0].sampling);
  const taken = [(await first.next()).value!];
  const answers = wanted.slice(1).map((ask, i) => answer(engine, ask, gone[i + 1].signal));
  while (taken.length < 3) taken.push((await first.next()).value!);
  const { freeBlocks, running, waiting } = engine.stats;
  gone[1].abort();
  assert.equal(engine.stats.running, running - 1);
  assert.ok(engine.stats.freeBlocks > freeBlocks);
  gone[7].abort();
  assert.equal(engine.stats.waiting, waiting - 1);
  for await (const token of first) taken.push(token);
  const made = [taken, ...await Promise.all(answers)];
  assert.equal(engine.stats.freeBlocks, engine.stats.blocks);
  assert.ok(made[1].length < 40);
  const left = [0, 2, 3, 4, 5, 6];
  sameAnswers(left.map((i) => made[i]), left.map((i) => expected[i]));
});

Deno.test("scores and answers share steps", async () => {
  const device = await testDevice();
  const open = () => createModel(device, config, { seed: 25 });
  const wanted = asks(4, (i) => 9 + i, 20);
  using model = open();
  await using engine = createEngine(model, { maxBatchedTokens: 48 });
  const text = prompt(140, 5);
  const expected = await engine.score(text, 2);
  const [scores, ...answers] = await Promise.all([engine.score(text, 2), ...wanted.map((ask) => answer(engine, ask))]);
  assert.equal(scores.length, 140);
  assertClose(
    scores.slice(1).map((score) => score!.logprob),
    expected.slice(1).map((score) => score!.logprob),
    TOLERANCE,
    "scores",
  );
  sameAnswers(answers, await alone(open, wanted));
  assert.deepEqual(await engine.score(Uint32Array.of(4), 2), [null]);
});

Deno.test("memory stands still over many requests", async () => {
  const device = await testDevice();
  using model = await loadModel(device, FIXTURE);
  await using engine = createEngine(model);
  const round = async () => {
    await Promise.all(asks(20, (i) => 1 + i, 12).map((ask) => answer(engine, ask)));
    return device.bytes;
  };
  const bytes = await round();
  for (let i = 0; i < 10; i++) assert.equal(await round(), bytes);
  assert.equal(engine.stats.freeBlocks, engine.stats.blocks);
});

Deno.test("a step that fails ends all that shared it, and the next request is answered", async () => {
  const device = await testDevice();
  using model = await loadModel(device, FIXTURE);
  await using engine = createEngine(model);
  const wanted = asks(3, () => 4, 10);
  const expected = await oneByOne(engine, wanted);
  const download = device.download;
  device.download = () => Promise.reject(new Error("the driver is gone"));
  const failed = await Promise.allSettled(wanted.map((ask) => answer(engine, ask)));
  device.download = download;
  assert.ok(failed.every((result) => result.status === "rejected" && /driver is gone/.test(String(result.reason))));
  assert.equal(engine.stats.freeBlocks, engine.stats.blocks);
  sameAnswers(await Promise.all(wanted.map((ask) => answer(engine, ask))), expected);
});

Deno.test("an engine that can't hold one context is refused", async () => {
  const device = await testDevice();
  using model = createModel(device, config, { seed: 26 });
  assert.throws(
    () => createEngine(model, { kvMemory: 9 * BLOCK_BYTES }),
    /context of 150 tokens takes 0.1 MiB, found 0.1/,
  );
  assert.throws(() => createEngine(model, { maxSequences: 8, maxBatchedTokens: 7 }), /8 sequences in 7 rows/);
});

Deno.test("what runs when an engine is disposed ends with an error", async () => {
  const device = await testDevice();
  using model = await loadModel(device, FIXTURE);
  const engine = createEngine(model);
  const running = answer(engine, asks(1, () => 4, 30)[0]);
  const failed = assert.rejects(running, /was disposed/);
  await engine[Symbol.asyncDispose]();
  await failed;
  await assert.rejects(answer(engine, asks(1, () => 4, 30)[0]), /was disposed/);
});
