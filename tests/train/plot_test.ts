/** Plots: one well-formed picture a measure, with what it must show. */
import assert from "node:assert/strict";
import { Resvg } from "@resvg/resvg-js";
import type { MetricRecord } from "../../model/run_metrics.ts";
import { plots } from "../../train/plot.ts";

function records(steps: number): MetricRecord[] {
  const updates = Array.from({ length: steps }, (_, i): MetricRecord => ({
    kind: "update",
    step: i + 1,
    loss: 3 + 5 * (i + 1) ** -0.5,
    gradNorm: 1 / (i + 1),
    learningRate: 1e-3,
    tokensPerSecond: 1000 + i % 7,
    tokens: i,
  }));
  const evaluations = Array.from({ length: Math.floor(steps / 10) }, (_, i): MetricRecord => {
    return { kind: "evaluation", step: (i + 1) * 10, loss: 3.1 + 5 * ((i + 1) * 10) ** -0.5 };
  });
  return [{ kind: "run", step: 0, unigramEntropy: 6.25, parameters: 1, device: "<d>" }, ...updates, ...evaluations];
}

Deno.test("each measure has its picture, and it renders", () => {
  const drawn = plots(records(200));
  assert.deepEqual(Object.keys(drawn), ["loss", "gradient_norm", "learning_rate", "throughput"]);
  for (const [name, svg] of Object.entries(drawn)) {
    assert.match(svg, /^<svg [^>]*xmlns="http:\/\/www.w3.org\/2000\/svg"/);
    const { width, height, pixels } = new Resvg(svg).render();
    assert.ok(width > 800 && height > 400, name);
    assert.ok(new Set(new Uint32Array(new Uint8Array(pixels).buffer)).size > 20, `${name} is empty`);
  }
  assert.match(drawn.loss, /unigram entropy 6\.25/);
  assert.match(drawn.loss, /held-out 3\.454/);
  assert.match(drawn.loss, />50</);
});

Deno.test("a run of one update, one without held-out loss and a long one can be drawn; one without updates has no picture", () => {
  assert.deepEqual(plots([]), {});
  for (const some of [records(1), records(5), records(1).slice(1)]) {
    assert.ok(Object.values(plots(some)).every((svg) => !/NaN|Infinity/.test(svg)));
  }
  assert.ok(plots(records(50_000)).loss.length < 500_000);
});

Deno.test("a gradient that isn't finite leaves a gap, not an error", () => {
  const some = records(20).map((record) =>
    record.kind === "update" && record.step === 5 ? { ...record, gradNorm: null! } : record
  );
  assert.doesNotMatch(plots(some).gradient_norm, /NaN/);
});
