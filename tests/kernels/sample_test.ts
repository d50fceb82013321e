/** Choosing tokens against f64: the kept sets to the token, the draws by their frequencies. */
import assert from "node:assert/strict";
import type { Graph } from "../../kernels/gpu/graph.ts";
import { philox, uniformOf } from "../../kernels/random.ts";
import { sample } from "../../kernels/sample.ts";
import { assertClose } from "../close.ts";
import { noise } from "../harness.ts";
import { drawError, keptTokens, logProbabilities, order, type Truncation } from "../reference/sample.ts";
import { bindingLimit, runGraph, type RunOptions } from "./run_graph.ts";

interface Row extends Partial<Truncation> {
  readonly seed?: number;
  readonly position?: number;
}

const PLAIN: Truncation = { temperature: 1, topP: 1, topK: 0, minP: 0 };
/** A share of the mass that sums in f32 of exponentials, good to 3 + 2|x| units each, may be wrong by. */
const ROUNDING = 1e-5;
/** The exponential is good to 3 + 2|x| units, sums of 50 to a lane to 50 units, the logarithm to 2^-21; |x| is below 40. */
const LOGPROB = { atol: 1e-5, rtol: 1e-6 };

/** Samples rows of logits; `logitsOf` gives a row's, padded with something large that must never be drawn. */
async function sampleRows(
  rows: readonly Row[],
  logitsOf: (row: number) => Float32Array,
  { padding = 3, ...options }: RunOptions & { readonly padding?: number } = {},
): Promise<{ tokens: Uint32Array; logprobs: Float32Array }> {
  const vocabulary = logitsOf(0).length;
  const stride = vocabulary + padding;
  const logits = new Float32Array(rows.length * stride).fill(1e4);
  rows.forEach((_, row) => logits.set(logitsOf(row), row * stride));
  const params = rows.flatMap(({ temperature = 1, topP = 1, minP = 0 }) => [temperature, topP, minP, 0]);
  const settings = rows.flatMap(({ topK = 0, seed = 7, position = 0 }) => [topK, seed, 0, position]);
  const build = (graph: Graph) => ({
    ...sample(
      graph.input("logits", [rows.length, stride]),
      graph.input("params", [rows.length, 4]),
      graph.input("settings", [rows.length, 4], "u32"),
      vocabulary,
    ),
  });
  const data = { logits, params: new Float32Array(params), settings: new Uint32Array(settings) };
  const { tokens, logprobs } = await runGraph(build, data, options);
  return { tokens: new Uint32Array(tokens), logprobs: new Float32Array(logprobs) };
}

/** The number that a row's draw compares with. */
function uniform({ seed = 7, position = 0 }: Row): number {
  return uniformOf(philox([position, 0, 0, 0], [seed, 0])[0]);
}

/**
 * Draws `draws` times for each truncation from the same logits: each draw is one that f64 makes, and where `covered` the
 * draws are all of the kept set.
 */
async function checkDraws(
  logits: Float32Array,
  truncations: readonly Truncation[],
  { draws, covered = true, ...options }: RunOptions & { draws: number; covered?: boolean; padding?: number },
): Promise<void> {
  const rows = truncations.flatMap((truncation) =>
    Array.from({ length: draws }, (_, position) => ({ ...truncation, position }))
  );
  const { tokens, logprobs } = await sampleRows(rows, () => logits, options);
  const expectedLogprobs = logProbabilities(logits);
  truncations.forEach((truncation, index) => {
    const label = JSON.stringify(truncation);
    const kept = keptTokens(logits, truncation);
    assert.ok(!covered || kept.margin > ROUNDING, `${label}: the nucleus ends ${kept.margin} from another`);
    const drawn = new Set<number>();
    for (let draw = 0; draw < draws; draw++) {
      const at = index * draws + draw;
      const error = drawError(logits, kept.tokens, truncation.temperature, uniform(rows[at]), tokens[at]);
      assert.ok(error <= ROUNDING, `${label}, draw ${draw} gave ${tokens[at]}, ${error} from its share`);
      assertClose([logprobs[at]], [expectedLogprobs[tokens[at]]], LOGPROB, label);
      drawn.add(tokens[at]);
    }
    const ascending = (ids: Iterable<number>) => [...ids].sort((a, b) => a - b);
    if (covered) assert.deepEqual(ascending(drawn), ascending(kept.tokens), label);
  });
}

/** Random logits with some equal ones, and their order no order of ids. */
function mixedLogits(vocabulary: number, scale: number): Float32Array {
  const values = noise(vocabulary, vocabulary);
  return Float32Array.from(values, (value, id) => id % 5 === 3 ? Math.fround(scale * values[id - 2]) : scale * value);
}

/** A few likely tokens spread over the vocabulary, and a long tail that holds a twentieth of the mass. */
function peakedLogits(vocabulary: number, likely: number): Float32Array {
  const logits = Float32Array.from(noise(vocabulary, 5), (value) => value - Math.log(20 * vocabulary / likely));
  for (let i = 0; i < likely; i++) logits[(i * 7919 + 13) % vocabulary] = 0.5 - (i % 10) / 10;
  return logits;
}

for (const choice of [0, 1]) {
  const lanes = choice === 0 ? "few lanes" : "many lanes";

  Deno.test(`kept sets and draws are those of f64, 5 to 257 tokens, ${lanes}`, async () => {
    const both = { temperature: 0.8, topP: 0.7, topK: 0, minP: 0 };
    for (const [vocabulary, padding] of [[5, 3], [64, 0], [257, 3]]) {
      const logits = mixedLogits(vocabulary, 1);
      await checkDraws(logits, [
        { ...PLAIN, topK: 3 },
        { ...PLAIN, topK: vocabulary === 5 ? 4 : 17 },
        {
          ...both,
          topK: vocabulary === 5 ? 4 : 20,
        },
        { ...PLAIN, topP: vocabulary === 5 ? 0.6 : 0.2 },
        { ...PLAIN, minP: vocabulary === 257 ? 0.9 : 0.6 },
        {
          ...both,
          minP: vocabulary === 257 ? 0.85 : 0.5,
          topK: 30,
        },
      ], { draws: 250, padding, choice });
    }
  });

  Deno.test(`kept sets and draws are those of f64, 50257 tokens, ${lanes}`, async () => {
    const logits = peakedLogits(50257, 20);
    await checkDraws(logits, [
      { ...PLAIN, topK: 12 },
      { ...PLAIN, topP: 0.6 },
      { temperature: 0.7, topP: 0.8, topK: 15, minP: 0 },
      { temperature: 0.9, topP: 0.9, topK: 50, minP: 0.55 },
    ], { draws: 60, padding: 47, choice });
  });
}

Deno.test("a long tail is kept to the token: 50257 and 262144 tokens", async () => {
  for (const [vocabulary, draws] of [[50257, 12], [262144, 3]]) {
    const logits = Float32Array.from(noise(vocabulary, 3), (value) => 8 * value);
    await checkDraws(logits, [
      PLAIN,
      { ...PLAIN, topK: 1000 },
      { temperature: 0.7, topP: 0.95, topK: 20000, minP: 0 },
      { temperature: 1.5, topP: 0.5, topK: 0, minP: 1e-4 },
    ], { draws, covered: false, padding: vocabulary % 64 === 0 ? 0 : 47 });
  }
});

Deno.test("equal logits are kept by id: a whole row of them, and two levels", async () => {
  const flat = new Float32Array(257).fill(-2.5);
  await checkDraws(flat, [
    { ...PLAIN, topK: 10 },
    { ...PLAIN, topP: 0.05 },
    { ...PLAIN, topP: 0.48, topK: 20 },
    { ...PLAIN, minP: 1, topK: 5 },
  ], { draws: 300 });
  const levels = Float32Array.from({ length: 300 }, (_, id) => id % 3 === 0 ? 1 : id % 3 === 1 ? -0 : 0);
  const all = 100 * Math.E + 200;
  await checkDraws(levels, [
    { ...PLAIN, topK: 103, temperature: 0.5 },
    { ...PLAIN, topP: (100 * Math.E + 4.5) / all },
  ], { draws: 1500, covered: false });
  const { tokens } = await sampleRows(
    Array.from({ length: 200 }, (_, position) => ({ topP: 0.25, topK: 4, temperature: 1e30, position })),
    () => Float32Array.of(-1, -0, 0, -0, 0),
  );
  assert.deepEqual(new Set(tokens), new Set([1]), "a quarter of four is one");
});

Deno.test("logits that differ by their last bits, five of each", async () => {
  const bits = Uint32Array.from({ length: 257 }, (_, id) => id < 40 ? 0x3f80_0000 + (id * 5) % 8 : 0xff00_0000);
  const truncations = [1, 2, 3, 5, 7, 12, 13, 18, 21, 24, 29, 32, 38].map((topK) => ({ ...PLAIN, topK }));
  await checkDraws(new Float32Array(bits.buffer), truncations, { draws: 350 });
});

Deno.test("a quarter, a tenth, a third of equal tokens are that many", async () => {
  for (
    const [equal, topP, kept] of [[8, 0.25, 2], [10, 0.1, 1], [257, 100 / 257, 100], [9, 1 / 3, 3], [5, 0.8, 4], [
      50,
      0.54,
      27,
    ], [100, 0.6, 60]]
  ) {
    const rows = Array.from({ length: 500 }, (_, position) => ({ topP, position }));
    const { tokens } = await sampleRows(rows, () => new Float32Array(257).fill(-Infinity).fill(3, 257 - equal));
    const last = Math.max(...tokens) - (257 - equal);
    assert.ok(last < kept, `${topP} of ${equal} kept ${last + 1}`);
    if (kept < 100) assert.equal(last, kept - 1);
  }
});

Deno.test("greedy takes the first of the most likely; so do top-k 1, top-p 0 and tiny temperatures", async () => {
  const rows: Row[] = [
    { temperature: 0 },
    { topK: 1 },
    { topP: 0 },
    { topP: 1e-9 },
    { topP: 1e-45, topK: 3 },
    { temperature: 1e-39, topK: 1 },
    { temperature: 0, topP: 0.5, topK: 2, minP: 0.3, position: 9 },
  ];
  const cases = [[1, 3, 3, 2, 0], [-0, 0, -1, -0, 0], [0, -0, -1, 0, 0], [-7, -6, -6, -6, -8], [
    1e38,
    3e38,
    3e38,
    0,
    -1e38,
  ]];
  for (const logits of [...cases, [2]]) {
    const { tokens } = await sampleRows(rows, () => Float32Array.from(logits));
    assert.deepEqual([...tokens], rows.map(() => order(logits)[0]), `${logits}`);
  }
});

Deno.test("temperatures beyond sense neither break nor leave the vocabulary", async () => {
  const temperatures = [1e-45, 1e-39, 1e-30, 1e-10, 1e30, 1e38];
  const rows = temperatures.flatMap((temperature) =>
    Array.from({ length: 50 }, (_, position) => ({ temperature, position, topP: 0.9, minP: 0.1 }))
  );
  const { tokens, logprobs } = await sampleRows(rows, () => Float32Array.of(1, 1.0000001, 0.5, 1.0000001, -1e38));
  for (let i = 0; i < 200; i++) assert.equal(tokens[i] % 2, 1, `temperature ${rows[i].temperature} drew ${tokens[i]}`);
  for (let i = 200; i < 300; i++) assert.ok(tokens[i] < 4);
  assert.deepEqual(new Set(tokens.subarray(200)), new Set([0, 1, 2, 3]), "a hot row draws all");
  assert.ok(logprobs.every((value) => value < 0));
});

Deno.test("infinite logits: excluded tokens are never drawn, certain ones always; a NaN shows", async () => {
  const rows: readonly Row[] = [{}, { temperature: 0 }, { topK: 2 }, { topP: 0.5 }, { minP: 0.1 }, {
    topP: 0.9,
    topK: 3,
  }];
  const many = rows.flatMap((row) => Array.from({ length: 30 }, (_, position) => ({ ...row, position })));
  const excluded = await sampleRows(many, () => Float32Array.of(-Infinity, 2, -Infinity, 2, -Infinity));
  assert.ok(excluded.tokens.every((token) => token === 1 || token === 3));
  assertClose(excluded.logprobs, many.map(() => -Math.LN2), LOGPROB);
  const certain = await sampleRows(many, () => Float32Array.of(1, 5, Infinity, 2, -Infinity));
  assert.ok(certain.tokens.every((token) => token === 2));
  assertClose(certain.logprobs, many.map(() => 0), LOGPROB);
  const impossible = await sampleRows(many, () => new Float32Array(5).fill(-Infinity));
  assert.ok(impossible.tokens.every((token) => token < 5));
  const negativeNaN = new Float32Array(Uint32Array.of(0xffc00000, 0, 0, 0, 0).buffer);
  for (const broken of [Float32Array.of(1, NaN, 2, 3, 0), negativeNaN]) {
    const { tokens, logprobs } = await sampleRows(rows, () => broken);
    assert.ok(tokens.every((token) => token < broken.length));
    assert.ok(logprobs.every(Number.isNaN), `${logprobs}`);
  }
});

Deno.test("a row's draw depends on its seed and position, not on its place or its neighbours", async () => {
  const rows = Array.from({ length: 24 }, (_, i) => ({ seed: i % 4, position: Math.floor(i / 4), topP: 0.95 }));
  const logits = (seed: number) => mixedLogits(64, 1 + seed);
  const together = await sampleRows(rows, (row) => logits(rows[row]?.seed ?? 0));
  const reversed = rows.toReversed();
  const backwards = await sampleRows(reversed, (row) => logits(reversed[row].seed));
  assert.deepEqual(backwards.tokens.toReversed(), together.tokens);
  for (const row of [0, 5, 23]) {
    const alone = await sampleRows([rows[row]], () => logits(rows[row].seed));
    assert.equal(alone.tokens[0], together.tokens[row]);
    assert.equal(alone.logprobs[0], together.logprobs[row]);
  }
});

/** Pearson's statistic of draws against probabilities. */
function chiSquare(tokens: Uint32Array, probabilities: Float64Array): number {
  const counts = new Float64Array(probabilities.length);
  for (const token of tokens) counts[token]++;
  return counts.reduce((sum, seen, id) => {
    const expected = probabilities[id] * tokens.length;
    return sum + (expected === 0 ? 0 : (seen - expected) ** 2 / expected);
  }, 0);
}

Deno.test("draws follow the probabilities, over positions and over seeds", async () => {
  const logits = mixedLogits(40, 1.5);
  const plain = logProbabilities(logits).map(Math.exp);
  // The 99.9% quantile with 39 degrees of freedom is 72.1; an expected count is at least 15.
  for (const vary of ["position", "seed"]) {
    const rows = Array.from({ length: 3000 }, (_, i) => ({ [vary]: i }));
    const { tokens } = await sampleRows(rows, () => logits);
    assert.ok(chiSquare(tokens, plain) < 72.1, `${vary}: ${chiSquare(tokens, plain)}`);
    assert.ok(chiSquare(tokens, plain) > 14, `${vary}: too even to be random: ${chiSquare(tokens, plain)}`);
  }
  const hot = { temperature: 2, topP: 0.8, topK: 30, minP: 0.2 };
  const kept = keptTokens(logits, hot).tokens;
  const weights = Float64Array.from(logits, (logit, id) => kept.has(id) ? Math.exp(logit / hot.temperature) : 0);
  const all = weights.reduce((sum, weight) => sum + weight, 0);
  const rows = Array.from({ length: 2000 }, (_, position) => ({ ...hot, position, seed: 3 }));
  const { tokens } = await sampleRows(rows, () => logits);
  assert.ok(tokens.every((token) => kept.has(token)));
  assert.ok(chiSquare(tokens, weights.map((weight) => weight / all)) < 62, "99.9% with at most 29 degrees is below 62");
});

Deno.test("logits past the binding limit are sampled by slices of rows", async () => {
  const rows = Array.from({ length: 11 }, (_, position) => ({ position, topK: 5 }));
  const logits = (row: number) => mixedLogits(64, row + 1);
  const whole = await sampleRows(rows, logits, { padding: 0 });
  const sliced = await sampleRows(rows, logits, { padding: 0, change: bindingLimit(4 * 64 * 4) });
  assert.deepEqual(sliced, whole);
});
