/** Top log-probabilities, penalties and bias against f64. */
import assert from "node:assert/strict";
import { Graph } from "../../kernels/gpu/graph.ts";
import { adjustLogits, type Adjustments, NO_TOKEN, sample, SEEN, topLogprobs } from "../../kernels/sample.ts";
import { assertClose } from "../close.ts";
import { noise, randomF32 } from "../harness.ts";
import { adjustedLogits, type Adjustment, logProbabilities, order } from "../reference/sample.ts";
import { bindingLimit, runGraph, type RunOptions } from "./run_graph.ts";

/** As in sample_test.ts: the exponential, the sum and the logarithm in f32. */
const LOGPROB = { atol: 1e-5, rtol: 1e-6 };

interface Top {
  readonly given: Float32Array;
  readonly ids: Uint32Array;
  readonly logprobs: Float32Array;
}

async function topOf(
  rows: readonly Float32Array[],
  targets: readonly number[],
  k: number,
  { padding = 3, ...options }: RunOptions & { padding?: number } = {},
): Promise<Top> {
  const vocabulary = rows[0].length;
  const stride = vocabulary + padding;
  const logits = new Float32Array(rows.length * stride).fill(NaN);
  rows.forEach((values, row) => logits.set(values, row * stride));
  const build = (graph: Graph) => ({
    ...topLogprobs(
      graph.input("logits", [rows.length, stride]),
      graph.input("targets", [rows.length], "u32"),
      vocabulary,
      k,
    ),
  });
  const result = await runGraph(build, { logits, targets: Uint32Array.from(targets) }, options);
  return {
    given: new Float32Array(result.given),
    ids: new Uint32Array(result.ids),
    logprobs: new Float32Array(result.logprobs),
  };
}

function checkTop(rows: readonly Float32Array[], targets: readonly number[], k: number, top: Top): void {
  rows.forEach((logits, row) => {
    const expected = logProbabilities(logits);
    const best = order(logits).slice(0, k);
    assert.deepEqual([...top.ids.subarray(row * k, (row + 1) * k)], best);
    assertClose(top.logprobs.subarray(row * k, (row + 1) * k), best.map((id) => expected[id]), LOGPROB, "top");
    assertClose([top.given[row]], [expected[targets[row]]], LOGPROB, "given");
  });
}

function mixed(vocabulary: number, seed: number): Float32Array {
  return Float32Array.from(noise(vocabulary, seed), (value, id) => id % 7 === 0 ? 3 : 6 * value);
}

Deno.test("the most likely tokens in order, equal ones by id, with log-probabilities", async () => {
  for (const choice of [0, 1]) {
    for (const [vocabulary, k] of [[5, 5], [261, 20]]) {
      const rows = [1, 2, 3].map((seed) => mixed(vocabulary, seed));
      const targets = [0, vocabulary - 1, 2];
      checkTop(rows, targets, k, await topOf(rows, targets, k, { choice }));
    }
  }
  const zeros = [Float32Array.of(-0, -1, 0, -0, 1)];
  checkTop(zeros, [3], 5, await topOf(zeros, [3], 5));
});

Deno.test("20 of 50257 and of 262144, and the most that is allowed", async () => {
  for (const [vocabulary, k, padding] of [[50257, 20, 47], [262144, 20, 0], [1500, 755, 4], [50257, 436, 47]]) {
    const rows = [mixed(vocabulary, 4)];
    checkTop(rows, [vocabulary - 1], k, await topOf(rows, [vocabulary - 1], k, { padding }));
  }
});

Deno.test("top of slices of rows, of infinities, of NaN; a target outside", async () => {
  const rows = [5, 6, 7, 8, 9].map((seed) => mixed(64, seed));
  const targets = [9, 8, 7, 6, 5];
  checkTop(rows, targets, 3, await topOf(rows, targets, 3, { padding: 0, change: bindingLimit(2 * 64 * 4) }));
  const [excluded, certain, broken] = [[-Infinity, 2, 2, -Infinity, 2], [1, Infinity, 2, 3, 4], [1, 2, NaN, 4, 5]];
  const top = await topOf([excluded, certain, broken].map((row) => Float32Array.from(row)), [0, 1, 5], 2);
  assert.deepEqual([...top.ids.subarray(0, 3)], [1, 2, 1]);
  assertClose(top.logprobs.subarray(0, 3), [-Math.log(3), -Math.log(3), 0], LOGPROB);
  assert.deepEqual([...top.given.subarray(0, 2)], [-Infinity, 0]);
  assert.ok(Number.isNaN(top.given[2]) && top.logprobs.subarray(4).every(Number.isNaN));
  const outside = await topOf([Float32Array.of(1, 2, 3, 4, 5)], [5], 1);
  assert.ok(Number.isNaN(outside.given[0]) && outside.logprobs[0] < 0);
});

const ROWS = 5;
const VOCABULARY = 61;
const STRIDE = 64;
const ENTRIES = 9;

/** A row's entries name different tokens; the last is unused. */
function adjustmentsOf(row: number): Adjustment[] {
  return Array.from({ length: ENTRIES - 1 }, (_, entry) => ({
    token: (row * 11 + entry * 7) % VOCABULARY,
    count: entry % 3,
    seen: entry % 2 === 0,
    bias: entry % 4 === 3 ? -100 : entry / 8,
  }));
}

function list(graph: Graph, rows = ROWS): Adjustments {
  return {
    tokens: graph.input("tokens", [rows, ENTRIES], "u32"),
    counts: graph.input("counts", [rows, ENTRIES], "u32"),
    biases: graph.input("biases", [rows, ENTRIES]),
    penalties: graph.input("penalties", [rows, 4]),
  };
}

for (const change of [undefined, bindingLimit(2 * STRIDE * 4)]) {
  Deno.test(`penalties and bias, ${change ? "by slices of rows" : "whole"}`, async () => {
    const rows = Array.from({ length: ROWS }, (_, row) => adjustmentsOf(row));
    const penalties = rows.map((_, row) => [1 + row / 4, row / 8, 0.25 * row, 0]);
    const padded = <T>(values: T[][], last: T) => values.flatMap((row) => [...row, last]);
    const logits = randomF32(ROWS * STRIDE, 8, 5);
    const data = {
      logits,
      tokens: Uint32Array.from(padded(rows.map((row) => row.map(({ token }) => token)), NO_TOKEN)),
      counts: Uint32Array.from(
        padded(rows.map((row) => row.map(({ count, seen }) => (seen ? count | SEEN : count) >>> 0)), 3),
      ),
      biases: Float32Array.from(padded(rows.map((row) => row.map(({ bias }) => bias)), 50)),
      penalties: Float32Array.from(penalties.flat()),
    };
    const build = (graph: Graph) => ({
      adjusted: adjustLogits(graph.input("logits", [ROWS, STRIDE]), list(graph), VOCABULARY),
    });
    const adjusted = new Float32Array((await runGraph(build, data, { change })).adjusted);
    rows.forEach((row, index) => {
      const from = index * STRIDE;
      const expected = adjustedLogits(logits.subarray(from, from + STRIDE), row, penalties[index]);
      // Five roundings of numbers up to 105.
      assertClose(adjusted.subarray(from, from + STRIDE), expected, { atol: 5 * 2 ** -18, rtol: 0 }, `row ${index}`);
    });
  });
}

Deno.test("sampling refuses what doesn't fit, by name and shape", () => {
  const graph = new Graph();
  const logits = graph.input("l", [2, 8]);
  const params = graph.input("p", [2, 4]);
  const settings = graph.input("s", [2, 4], "u32");
  const refused = (make: () => unknown, message: RegExp) => assert.throws(make, { name: "RangeError", message });
  refused(() => sample(logits, params, settings, 9), /Cannot sample \(2, 8\) f32: want \(S, 9 or more\) f32/);
  refused(() => sample(graph.input("i", [2, 8], "i32"), params, settings, 8), /Cannot sample \(2, 8\) i32/);
  refused(() => sample(logits, settings, settings, 8), /with \(2, 4\) u32: want \(2, 4\) f32/);
  refused(() => sample(logits, params, params, 8), /with \(2, 4\) f32: want \(2, 4\) u32/);
  refused(() => sample(logits, graph.input("q", [1, 4]), settings, 8), /with \(1, 4\) f32: want \(2, 4\) f32/);
  refused(() => sample(graph.input("h", [2, 2 ** 20]), params, settings, 2 ** 20), /1048576 tokens: want 1 to 524288/);
  refused(() => sample(logits, params, settings, 0), /over 0 tokens/);
  refused(() => topLogprobs(logits, graph.input("t", [2], "i32"), 8, 1), /with \(2\) i32: want \(2\) u32/);
  refused(() => topLogprobs(logits, graph.input("u", [2], "u32"), 8, 9), /top 9 of 8: want 1 to 8/);
  const large = graph.input("large", [2, 50304]);
  refused(() => topLogprobs(large, graph.input("u", [2], "u32"), 50257, 5000), /top 5000 of 50257: want 1 to 436/);
  const other = list(graph, 2);
  refused(() => adjustLogits(logits, { ...other, counts: other.biases }, 8), /with \(2, 9\) f32: want \(2, 9\) u32/);
  refused(() => adjustLogits(logits, { ...other, biases: graph.input("b", [2, 8]) }, 8), /want \(2, 9\) f32/);
  refused(() => adjustLogits(logits, { ...other, penalties: graph.input("e", [8]) }, 8), /want \(2, 4\) f32/);
  const none = graph.input("none", [2, 0], "u32");
  refused(() => adjustLogits(logits, { ...other, tokens: none, counts: none }, 8), /want \(2, 1\) u32/);
});
