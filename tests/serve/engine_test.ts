/** The cached engine against the plain generator, and both against dense logits, over chunk borders and to the context's end. */
import assert from "node:assert/strict";
import { defaultSampling, type Engine, type Generated, type Sampling } from "../../model/generate.ts";
import { createModel } from "../../model/load.ts";
import { PlainGenerator } from "../../model/plain_generator.ts";
import { openDevice } from "../../kernels/gpu/device.ts";
import { createEngine } from "../../serve/engine.ts";
import { assertClose } from "../close.ts";
import { testDevice } from "../harness.ts";
import { config, TOLERANCE } from "./small_model.ts";

const greedy: Sampling = { ...defaultSampling, temperature: 0, maxTokens: 12, logprobs: 3 };

const prompt = (length: number) => Uint32Array.from({ length }, (_, i) => (i * 37 + 11) % config.vocab_size);

async function all(
  engine: Engine,
  tokens: Uint32Array,
  sampling: Sampling,
  signal?: AbortSignal,
): Promise<Generated[]> {
  const made: Generated[] = [];
  for await (const token of engine.generate(tokens, sampling, signal)) made.push(token);
  return made;
}

function sameTokens(actual: readonly Generated[], expected: readonly Generated[]): void {
  assert.deepEqual(
    actual.map(({ token, finish }) => [token, finish]),
    expected.map(({ token, finish }) => [token, finish]),
  );
  assertClose(
    actual.map(({ logprob }) => logprob),
    expected.map(({ logprob }) => logprob),
    TOLERANCE,
    "log-probability",
  );
  actual.forEach(({ top }, i) =>
    assert.deepEqual(top.map(({ token }) => token), expected[i].top.map(({ token }) => token))
  );
}

Deno.test("greedy by the engine is greedy by the plain generator", async () => {
  const device = await testDevice();
  using model = createModel(device, config, { seed: 5 });
  await using plain = new PlainGenerator(model);
  await using engine = createEngine(model);
  for (const length of [1, 15, 16, 17, 40, 129, 145, 150]) {
    sameTokens(await all(engine, prompt(length), greedy), await all(plain, prompt(length), greedy));
  }
});

Deno.test("penalties, bias, seeds and truncation choose the same tokens in both", async () => {
  const device = await testDevice();
  using model = createModel(device, config, { seed: 6 });
  await using plain = new PlainGenerator(model);
  await using engine = createEngine(model);
  const wishes: Partial<Sampling>[] = [
    { temperature: 0.9, topP: 0.8, seed: 2 ** 40 + 3 },
    { temperature: 1.3, topK: 7, seed: 4 },
    { temperature: 0, presencePenalty: 1.5, frequencyPenalty: 0.5 },
    { temperature: 0.7, repetitionPenalty: 1.4, seed: 9, logitBias: new Map([[5, 3], [17, -100]]) },
    { temperature: 1, seed: 3, minTokens: 8, stopTokens: Array.from({ length: 150 }, (_, token) => token) },
  ];
  for (const wish of wishes) {
    const sampling = { ...greedy, maxTokens: 20, ...wish };
    sameTokens(await all(engine, prompt(9), sampling), await all(plain, prompt(9), sampling));
  }
  const banned = new Map([[(await all(engine, prompt(9), greedy))[0].token, -100]]);
  const [first] = await all(engine, prompt(9), { ...greedy, logitBias: banned });
  assert.ok(!banned.has(first.token));
});

Deno.test("dense logits, scores by chunks and token-by-token decoding agree", async () => {
  const device = await testDevice();
  using model = createModel(device, config, { seed: 7 });
  await using plain = new PlainGenerator(model);
  await using engine = createEngine(model);
  const tokens = prompt(137);
  const logits = await model.logits([[...tokens]]);
  const V = config.vocab_size;
  const expected = Array.from({ length: tokens.length - 1 }, (_, row) => {
    const own = Float64Array.from(logits.subarray(row * V, (row + 1) * V));
    const highest = Math.max(...own);
    return own[tokens[row + 1]] - highest - Math.log(own.reduce((sum, value) => sum + Math.exp(value - highest), 0));
  });
  const scores = await engine.score(tokens, 2);
  assert.equal(scores[0], null);
  assertClose(scores.slice(1).map((score) => score!.logprob), expected, TOLERANCE, "scores");
  assert.ok(scores.slice(1).every((score) => score!.top.length === 2 && score!.top[0].logprob >= score!.logprob));
  const few = await plain.score(tokens.subarray(0, 6), 1);
  assertClose(few.slice(1).map((score) => score!.logprob), expected.slice(0, 5), TOLERANCE, "plain scores");
  // Each next token forced by a bias, so that decoding walks the same text token by token.
  for (let row = 60; row < 64; row++) {
    const [made] = await all(engine, tokens.subarray(0, row + 1), { ...greedy, maxTokens: 1, logprobs: 20 });
    const best = made.top[0];
    const own = logits.subarray(row * V, (row + 1) * V);
    assert.equal(best.token, own.indexOf(Math.max(...own)));
  }
});

Deno.test("stop tokens, limits, aborts and a full context end a generation", async () => {
  const device = await testDevice();
  using model = createModel(device, config, { seed: 8 });
  await using engine = createEngine(model);
  const made = await all(engine, prompt(5), greedy);
  assert.equal(made.length, 12);
  assert.equal(made[11].finish, "length");
  const stopped = await all(engine, prompt(5), { ...greedy, stopTokens: [made[3].token] });
  assert.equal(stopped.at(-1)!.finish, "stop");
  assert.ok(stopped.length <= 4);
  const stopTokens = [made[0].token, made[3].token];
  const later = await all(engine, prompt(5), { ...greedy, stopTokens, minTokens: 6, maxTokens: 60 });
  assert.ok(later.length > 6 && later.slice(0, 6).every(({ token }) => !stopTokens.includes(token)));
  assert.equal((await all(engine, prompt(150), greedy)).length, 1);
  const abort = new AbortController();
  const taken: Generated[] = [];
  for await (const token of engine.generate(prompt(5), { ...greedy, maxTokens: 100 }, abort.signal)) {
    taken.push(token);
    if (taken.length === 2) abort.abort();
  }
  assert.equal(taken.length, 2);
  await assert.rejects(all(engine, prompt(0), greedy), /empty prompt/);
  await assert.rejects(all(engine, prompt(151), greedy), /its? context is 150|context is 150/);
  await assert.rejects(all(engine, Uint32Array.of(193), greedy), /token id 193/);
});

Deno.test("several tokens a readback are the tokens of one a readback, to the bit", async () => {
  const device = await testDevice();
  const open = () => createModel(device, config, { seed: 10 });
  using first = open();
  using second = open();
  await using single = createEngine(first, { readback: { tokens: 1, milliseconds: Infinity } });
  await using several = createEngine(second, { readback: { tokens: 8, milliseconds: Infinity } });
  const seeded = { ...greedy, temperature: 1.1, topP: 0.95, seed: 2 ** 33 + 7, maxTokens: 30 };
  const plain = await all(single, prompt(9), { ...seeded, logprobs: 0 });
  const cases: [length: number, sampling: Sampling][] = [
    [9, { ...greedy, maxTokens: 30 }],
    [1, seeded],
    [17, { ...seeded, logprobs: 0 }],
    [9, { ...seeded, logprobs: 0, stopTokens: [plain[10].token] }],
    [9, { ...seeded, frequencyPenalty: 0.5, repetitionPenalty: 1.2 }],
    [131, { ...seeded, maxTokens: 100 }],
    [9, seeded],
  ];
  for (const [length, sampling] of cases) {
    const expected = await all(single, prompt(length), sampling);
    assert.deepEqual(await all(several, prompt(length), sampling), expected);
    assert.ok(expected.length > 1 && expected.at(-1)!.finish !== undefined);
  }
  const abort = new AbortController();
  const taken: Generated[] = [];
  for await (const token of several.generate(prompt(9), seeded, abort.signal)) {
    taken.push(token);
    if (taken.length === 5) abort.abort();
  }
  const expected = await all(single, prompt(9), seeded);
  assert.deepEqual(taken, expected.slice(0, 5));
  assert.deepEqual(await all(several, prompt(9), seeded), expected);
});

Deno.test("a generation is read 1, 2, 4, then 8 tokens at a time; with penalties, or where that takes long, one by one", async () => {
  const device = await testDevice();
  const download = device.download.bind(device);
  let reads = 0;
  device.download = (slices) => (reads++, download(slices));
  using _ = { [Symbol.dispose]: () => void (device.download = download) };
  const readsOf = async (milliseconds: number, sampling: Partial<Sampling>) => {
    using model = createModel(device, config, { seed: 11 });
    await using engine = createEngine(model, { readback: { tokens: 8, milliseconds } });
    reads = 0;
    assert.equal((await all(engine, prompt(20), { ...greedy, maxTokens: 25, ...sampling })).length, 25);
    return reads;
  };
  assert.equal(await readsOf(Infinity, {}), 6);
  assert.equal(await readsOf(Infinity, { presencePenalty: 0.5 }), 25);
  assert.equal(await readsOf(0, {}), 25);
  using model = createModel(device, config, { seed: 11 });
  assert.throws(
    () => createEngine(model, { readback: { tokens: 0, milliseconds: 0 } }),
    /Cannot read 0 tokens at a time/,
  );
});

Deno.test("requests made together get their own answers", async () => {
  const device = await testDevice();
  using model = createModel(device, config, { seed: 9 });
  await using engine = createEngine(model);
  const lengths = [3, 20, 7];
  const alone: Generated[][] = [];
  for (const length of lengths) alone.push(await all(engine, prompt(length), greedy));
  const together = await Promise.all(lengths.map((length) => all(engine, prompt(length), greedy)));
  together.forEach((made, i) => sameTokens(made, alone[i]));
});

Deno.test("a warmed engine compiles nothing for usual requests, and answers as one that isn't", async () => {
  const device = await testDevice();
  using cold = createModel(device, config, { seed: 11 });
  await using plain = createEngine(cold);
  const sampling = { ...greedy, temperature: 0.9, seed: 5, logprobs: 0 };
  const expected = await all(plain, prompt(40), sampling);
  using fresh = await openDevice();
  using model = createModel(fresh, config, { seed: 11 });
  await using engine = createEngine(model);
  let compiled = 0;
  const compile = fresh.gpu.createComputePipeline.bind(fresh.gpu);
  fresh.gpu.createComputePipeline = (descriptor) => (compiled++, compile(descriptor));
  await engine.warm();
  const before = compiled;
  assert.ok(before > 0);
  sameTokens(await all(engine, prompt(40), sampling), expected);
  await Promise.all([1, 30, 129, 17, 3].map((length) => all(engine, prompt(length), sampling)));
  assert.equal(compiled, before);
});
