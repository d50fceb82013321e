/** The learning rate's shape. */
import assert from "node:assert/strict";
import { learningRateAt, type ScheduleOptions } from "../../train/schedule.ts";

const base: ScheduleOptions = { schedule: "cosine", steps: 100, warmup: 10, learningRate: 1, minLearningRate: 0.1 };
const curve = (options: Partial<ScheduleOptions>) =>
  Array.from({ length: 100 }, (_, i) => learningRateAt(i + 1, { ...base, ...options }));

Deno.test("the rate rises in a line to the peak", () => {
  for (const schedule of ["cosine", "linear", "constant"] as const) {
    const rates = curve({ schedule });
    assert.equal(rates[0], 0.1);
    assert.equal(rates[4], 0.5);
    assert.equal(rates[9], 1);
    assert.equal(rates[10], 1);
  }
});

Deno.test("it falls as its name says and stays above the minimum", () => {
  assert.equal(curve({ schedule: "cosine" })[55], 0.1 + 0.9 / 2);
  assert.ok(Math.abs(curve({ schedule: "linear" })[55] - 0.55) < 1e-12);
  assert.deepEqual(new Set(curve({ schedule: "constant" }).slice(10)), new Set([1]));
  for (const schedule of ["cosine", "linear"] as const) {
    const rates = curve({ schedule }).slice(10);
    assert.ok(rates.every((rate, i) => i === 0 || rate < rates[i - 1]));
    assert.ok(rates[89] > 0.1 && rates[89] < 0.12);
  }
});

Deno.test("without warm-up it starts at the peak; past the end it stays at the minimum; a long warm-up only rises", () => {
  assert.equal(learningRateAt(1, { ...base, warmup: 0 }), 1);
  assert.equal(learningRateAt(101, base), 0.1);
  assert.equal(learningRateAt(500, base), 0.1);
  assert.equal(learningRateAt(3, { ...base, steps: 3, warmup: 10 }), 0.3);
});
