/** Ranks that share updates on the GPU against one that does all of them. */
import assert from "node:assert/strict";
import { type Capabilities, Graph } from "../../kernels/gpu/graph.ts";
import { Layout } from "../../kernels/gpu/layout.ts";
import { type Device, openDevice } from "../../kernels/gpu/device.ts";
import type { DenseBatch } from "../../model/batch.ts";
import { type Gpt2Config, gpt2Defaults } from "../../model/gpt2_config.ts";
import { createModel } from "../../model/load.ts";
import { shapeOf } from "../../model/shape.ts";
import { BUCKET_BYTES, bucketsOf } from "../../train/buckets.ts";
import { Abandoned, alone as aloneCommunicator, type Communicator, MEMORY_BYTES } from "../../train/communicator.ts";
import { microstepGraph, stepEntries } from "../../train/graphs.ts";
import { shardedParts } from "../../train/parts.ts";
import { shares } from "../../train/shares.ts";
import { compileStep, type Sharing, type StepOptions } from "../../train/step.ts";
import { assertClose } from "../close.ts";
import { testDevice } from "../harness.ts";
import { together } from "./local_ranks.ts";

const config: Gpt2Config = {
  ...gpt2Defaults,
  vocab_size: 300,
  n_positions: 32,
  n_embd: 64,
  n_head: 2,
  n_layer: 2,
  embd_pdrop: 0.1,
  attn_pdrop: 0.1,
  resid_pdrop: 0.1,
};
const ROWS = 64;
const UPDATES = 6;
const options: StepOptions = {
  rows: ROWS,
  optimizer: { beta1: 0.9, beta2: 0.98, eps: 1e-9, weightDecay: 0.01, clip: 1 },
  dropout: true,
};

/** Microbatch `index`: two documents of 32, some of its targets missing, in one of them nearly all. */
function microbatch(index: number): DenseBatch {
  const tokens = Uint32Array.from({ length: ROWS }, (_, row) => (index * 37 + row * row * 5 + row * 11) % 300);
  const targets = Int32Array.from(tokens, (token, row) => {
    const missing = index % 4 === 1 ? row > 5 : (row + index) % 9 === 0;
    return missing ? -100 : (token * 7 + 1) % 300;
  });
  return {
    tokens,
    targets,
    positions: Uint32Array.from(tokens, (_, row) => row % 32),
    starts: Uint32Array.from(tokens, (_, row) => row - row % 32),
    validTargets: targets.filter((target) => target >= 0).length,
  };
}

interface Trained {
  readonly losses: readonly number[];
  readonly norms: readonly number[];
  readonly weights: Float32Array;
  readonly moments: Float32Array;
}

interface Variation {
  readonly microbatches?: number;
  readonly speeds?: readonly number[];
  readonly step?: Partial<StepOptions>;
  readonly sharing?: Partial<Sharing>;
  /** What devices keep to. */
  readonly limits?: Parameters<Device["restrict"]>[0];
  /** Targets whose loss is multiplied to overflow, by update. */
  readonly overflow?: number;
}

/** Six updates by so many ranks, each with a device of its own. */
function train(size: number, variation: Variation = {}): Promise<Trained[]> {
  const { microbatches = 4, step: change, sharing: wishes, overflow } = variation;
  const { speeds = Array.from({ length: size }, () => 1) } = variation;
  return together(size, async (communicator) => {
    using device = await openDevice();
    if (variation.limits !== undefined) device.restrict(variation.limits);
    using model = createModel(device, config, { seed: 5 });
    const sharing = { communicator, wire: "f32", shard: false, bucketBytes: 1 << 15, ...wishes } as const;
    using step = await compileStep(model, { ...options, ...change }, size === 1 ? undefined : sharing);
    const [losses, norms]: number[][] = [[], []];
    for (let update = 1; update <= UPDATES; update++) {
      const all = Array.from({ length: microbatches }, (_, i) => microbatch(update * microbatches + i));
      const targets = all.reduce((sum, batch) => sum + batch.validTargets, 0);
      const [from, to] = shares(microbatches, speeds)[communicator.rank];
      const scale = update === overflow && communicator.rank === size - 1 ? 1e30 : 1 / targets;
      await step.accumulate({ batches: all.slice(from, to), firstRow: from * ROWS, scale, seed: 9, update });
      await step.update({ learningRate: 2e-3, update });
      const report = await step.report();
      losses.push(report.loss);
      norms.push(report.gradNorm);
    }
    const flat = async (kind: "parameter" | "expAvg" | "expAvgSq") => {
      const parts: number[] = [];
      for (const { read } of step.tensors(kind)) parts.push(...await read());
      return parts;
    };
    const weights = Float32Array.from(await flat("parameter"));
    const moments = Float32Array.from([...await flat("expAvg"), ...await flat("expAvgSq")]);
    return { losses, norms, weights, moments };
  });
}

function assertSame(ranks: readonly Trained[], expected: Trained): void {
  for (const rank of ranks) assert.deepEqual(rank, expected);
}

// Sums in another order: f32 rounding of the gradients, which AdamW's first updates pass on as shares of a learning rate.
const LOSSES = { atol: 2e-5, rtol: 2e-5 };
const WEIGHTS = { atol: 2e-3, rtol: 1e-3 };

let alone: Trained;

Deno.test("buckets cover all gradients once, each as soon as it can be whole", async () => {
  const { capabilities: { limits } } = await testDevice();
  const shape = shapeOf({ ...config, n_layer: 3, n_embd: 256, vocab_size: 20_000, n_head: 4 });
  const layout = new Layout(limits);
  for (const [kind, entries] of stepEntries(shape, "f32")) layout.allocate(kind, entries);
  const drawn = microstepGraph(shape, 64, options);
  assert.ok(drawn.graph instanceof Graph);
  const buckets = bucketsOf(layout, drawn);
  assert.ok(buckets.length >= 5);
  const covered = new Set<string>();
  for (const { buffer, offset, elements } of buckets) {
    assert.ok(elements * 4 <= BUCKET_BYTES);
    for (let at = offset; at < offset + 4 * elements; at += 256) {
      assert.ok(!covered.has(`${buffer} ${at}`), "a gradient is in two buckets");
      covered.add(`${buffer} ${at}`);
    }
  }
  for (const { variable } of drawn.gradients) {
    const { buffer, offset, size } = layout.get(variable)!;
    for (let at = offset; at < offset + size; at += 256) assert.ok(covered.has(`${buffer} ${at}`), variable);
  }
  // The token table gets its last contribution from the embedding, at the very end.
  const table = layout.get("gradient/transformer.wte.weight")!;
  assert.equal(buckets.at(-1)!.buffer, table.buffer);
  assert.ok(buckets[0].offset > table.offset + table.size);
});

Deno.test("two and three ranks learn what one learns that takes all microbatches, and hold the same bits", async () => {
  [alone] = await train(1);
  for (const size of [2, 3]) {
    const ranks = await train(size);
    assertSame(ranks.slice(1), ranks[0]);
    assertClose(ranks[0].losses, Float64Array.from(alone.losses), LOSSES, "losses");
    assertClose(ranks[0].weights, Float64Array.from(alone.weights), WEIGHTS, "weights");
    assertSame(await train(size), ranks[0]);
    assertSame(await train(size, { sharing: { bucketBytes: BUCKET_BYTES } }), ranks[0]);
  }
});

Deno.test("ranks of unequal speed share microbatches unequally, one may have none, and learn the same", async () => {
  for (const speeds of [[3, 1], [1, 0.01]]) {
    const ranks = await train(2, { speeds });
    assertSame(ranks.slice(1), ranks[0]);
    assertClose(ranks[0].losses, Float64Array.from(alone.losses), LOSSES, "losses");
  }
});

Deno.test("with moments shared out the bits are those of ranks that all keep all of them", async () => {
  const [whole] = await train(2);
  assertSame(await train(2, { sharing: { shard: true } }), whole);
});

Deno.test("gradients that travel as bf16 lose what bf16 rounds away", async () => {
  const ranks = await train(2, { sharing: { wire: "bf16" } });
  assertSame(ranks.slice(1), ranks[0]);
  assert.notDeepEqual(ranks[0].weights, alone.weights);
  // Each gradient is rounded three times, by 2^-9 of itself at most: so is the norm.
  const [first] = ranks[0].norms;
  assert.ok(Math.abs(first / alone.norms[0] - 1) < 3 * 2 ** -9, `norm ${first}, alone ${alone.norms[0]}`);
  assertClose(ranks[0].losses, Float64Array.from(alone.losses), { atol: 5e-3, rtol: 1e-3 }, "losses");
});

Deno.test("a gradient that overflows on one rank leaves the update out on all", async () => {
  const ranks = await train(2, { overflow: 3, step: { precision: "f16" } });
  assertSame(ranks.slice(1), ranks[0]);
  assert.ok(!Number.isFinite(ranks[0].norms[2]));
  assert.ok(ranks[0].weights.every(Number.isFinite));
});

Deno.test("a rank that is abandoned in the middle of its sums says so, whichever sum it was", async () => {
  using device = await openDevice();
  for (const failing of [1, 2, 3]) {
    let sums = 0;
    const lost: Communicator = {
      ...aloneCommunicator(),
      size: 2,
      memory: new Uint8Array(MEMORY_BYTES),
      allReduce: () => ++sums >= failing ? Promise.reject(new Abandoned()) : Promise.resolve(),
    };
    using model = createModel(device, config, { seed: 5 });
    using step = await compileStep(model, options, {
      communicator: lost,
      wire: "f32",
      shard: false,
      bucketBytes: 1 << 15,
    });
    const work = { batches: [microbatch(0)], scale: 1, seed: 0, update: 1 };
    await assert.rejects(step.accumulate(work), Abandoned);
    await new Promise((resolve) => setTimeout(resolve, 20)); // an unhandled rejection would end the test here
  }
});

Deno.test("ranks whose limits differ agree on buckets and parts once they keep to the least", async () => {
  const small = { maxBufferSize: 1 << 18, maxStorageBufferBindingSize: 1 << 17 };
  const shape = shapeOf(config);
  const lay = (limits: Capabilities["limits"]) => {
    const layout = new Layout(limits);
    const parameters = shape.declared.map((
      { name, padded, decay },
    ) => ({ name, shape: padded, dtype: "f32", decay } as const));
    layout.allocate("parameter", parameters);
    for (const [kind, entries] of stepEntries(shape, "f32")) layout.allocate(kind, entries);
    const places = bucketsOf(layout, microstepGraph(shape, ROWS, options), 1 << 15).map(
      ({ buffer, offset, elements }) => {
        return [buffer, offset, elements];
      },
    );
    return { places, parts: shardedParts(layout.ranges("parameter"), { rank: 0, size: 2 }).all };
  };
  using device = await openDevice();
  const wide = lay(device.capabilities.limits);
  device.restrict(small);
  const narrow = lay(device.capabilities.limits);
  assert.notDeepEqual(narrow, wide);
  assert.deepEqual(narrow, lay({ ...device.capabilities.limits, ...small }));
  const restricted = await train(2, { limits: small, sharing: { shard: true } });
  assertSame(restricted.slice(1), restricted[0]);
  assertClose(restricted[0].losses, Float64Array.from(alone.losses), LOSSES, "losses");
});
