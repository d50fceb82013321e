/** What gpt2.ts declares: the parameters that checkpoints hold, and how new ones start. No GPU. */

import assert from "node:assert/strict";
import { Graph } from "../../kernels/gpu/graph.ts";
import { denseContext } from "../../model/context.ts";
import { gpt2 } from "../../model/gpt2.ts";
import { type Gpt2Config, gpt2Parameters, parseGpt2Config } from "../../model/gpt2_config.ts";
import { parametersOf } from "../../model/objective.ts";
import type { Parameter } from "../../model/scope.ts";

function config(change: Record<string, unknown> = {}): Gpt2Config {
  const small = { model_type: "gpt2", n_layer: 3, n_head: 2, n_embd: 32, n_positions: 9, vocab_size: 67 };
  return parseGpt2Config({ ...small, ...change }, "config.json");
}

function declared(config: Gpt2Config): readonly Parameter[] {
  const graph = new Graph();
  return parametersOf(gpt2(config), graph, denseContext(graph, 4));
}

Deno.test("gpt2: the model declares the parameters of its config's checkpoint, in the same order", () => {
  for (const change of [{}, { n_inner: 48 }, { n_layer: 1, activation_function: "gelu" }]) {
    const parameters = declared(config(change)).map(({ name, shape }) => ({ name, shape }));
    assert.deepEqual(parameters, gpt2Parameters(config(change)));
  }
});

Deno.test("gpt2: only the vocabulary is padded, and only in memory", () => {
  for (const { name, shape, padded } of declared(config())) {
    assert.deepEqual(padded, name === "transformer.wte.weight" ? [128, 32] : shape, name);
  }
});

Deno.test("gpt2: weights start at the config's range, projections into the residual stream smaller by √(2L)", () => {
  for (const { name, shape, init, decay } of declared(config({ initializer_range: 0.03 }))) {
    const std = name.endsWith("c_proj.weight") ? 0.03 / Math.sqrt(6) : 0.03;
    const vector = { value: /ln_\w\.weight$/.test(name) ? 1 : 0 };
    assert.deepEqual(init, shape.length === 2 ? { std } : vector, name);
    assert.equal(decay, shape.length === 2, name);
  }
});
