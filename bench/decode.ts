/**
 * How fast GPT-2 124M's shape decodes, with random weights in each format: one stream through the engine, and one step of
 * 4 and 16 rows as its kernels take it. It knows no peer.
 */
import { openDevice } from "../kernels/gpu/device.ts";
import { Graph } from "../kernels/gpu/graph.ts";
import { compile } from "../kernels/gpu/program.ts";
import { cachedChoices } from "../kernels/gpu/tune.ts";
import { cacheFolder } from "../kernels/gpu/tune_cache.ts";
import { sample } from "../kernels/sample.ts";
import { cacheNames, pagedContext } from "../model/context.ts";
import { defaultSampling } from "../model/generate.ts";
import { logits } from "../model/linear.ts";
import type { Model } from "../model/model.ts";
import type { WeightFormat } from "../model/scope.ts";
import { createEngine } from "../serve/engine.ts";
import { driverOf } from "../train/adapters.ts";
import { type Bench, type BenchOptions, type Result, resultOf, select } from "./harness.ts";
import { GPT2, randomModel } from "./random_model.ts";

const FORMATS: readonly WeightFormat[] = ["f32", "bf16", "int8", "int4"];
const PROMPT = 112;
const ROWS = [4, 16];
const REPEATS = 30;
const BLOCK = 16;

interface Case {
  readonly name: string;
  readonly weights: WeightFormat;
  /** Rows of one step; undefined for a stream through the engine. */
  readonly rows?: number;
}

const CASES: readonly Case[] = FORMATS.flatMap((weights): Case[] => [
  { name: `one stream, ${weights}`, weights },
  ...ROWS.map((rows) => ({ name: `${rows} rows a step, ${weights}`, weights, rows })),
]);

export async function benchDecode(options: BenchOptions): Promise<Bench> {
  using device = await openDevice();
  if (options.tune !== "off") device.chooser = cachedChoices(device, cacheFolder(), options.progress);
  const results: Result[] = [];
  for (const { name, weights, rows } of select(CASES, options.case)) {
    options.progress(name);
    using model = randomModel(device, GPT2, weights);
    const repeats = options.repeats ?? REPEATS;
    const times = rows === undefined ? await stream(model, repeats) : await step(model, rows, repeats);
    const peak_device_bytes = device.bytes;
    results.push({ ...resultOf(name, times, { tokens: rows ?? 1 }), peak_device_bytes });
  }
  const config = { prompt: PROMPT, ...GPT2 };
  return { name: "decode", adapter: device.name, driver: driverOf(device.info), config, results };
}

/** Milliseconds between tokens of one stream; the first, which waits for the prompt, and the second, which compiles, don't count. */
async function stream(model: Model, repeats: number): Promise<number[]> {
  // One token a readback: those read together come with no time between.
  await using engine = createEngine(model, { readback: { tokens: 1, milliseconds: 0 } });
  const prompt = Uint32Array.from({ length: PROMPT }, (_, i) => i * 37 % GPT2.vocab_size);
  const times: number[] = [];
  let last = performance.now();
  for await (const _ of engine.generate(prompt, { ...defaultSampling, temperature: 0, maxTokens: repeats + 2 })) {
    const now = performance.now();
    times.push(now - last);
    last = now;
  }
  return times.slice(2);
}

/** One decode step over rows of as many sequences, sampling included. */
async function step(model: Model, rows: number, repeats: number): Promise<number[]> {
  allocateCache(model);
  const graph = new Graph();
  const blocks = Math.ceil((PROMPT + 1) / BLOCK);
  const context = pagedContext(graph, {
    rows,
    sequences: rows,
    blocks: GPT2.n_positions / BLOCK,
    blockSize: BLOCK,
    blocksPerSequence: blocks,
  });
  const scope = model.scope(graph);
  const hidden = model.architecture.hidden(scope, context);
  const all = logits(hidden, model.architecture.unembed(scope), scope.formats);
  const [params, settings] = [graph.input("sampling", [rows, 4]), graph.input("settings", [rows, 4], "u32")];
  const { tokens } = sample(all, params, settings, GPT2.vocab_size);
  using program = await compile(model.device, graph, { tokens }, model.store, { keep: true });
  program.write({
    tokens: new Uint32Array(rows).fill(7),
    positions: new Uint32Array(rows).fill(PROMPT),
    slots: Uint32Array.from({ length: rows }, (_, row) => row),
    sequences: Uint32Array.from({ length: rows }, (_, row) => row),
    block_table: Uint32Array.from({ length: rows * blocks }, (_, i) => i % (GPT2.n_positions / BLOCK)),
  });
  const times: number[] = [];
  for (let repeat = 0; repeat <= repeats; repeat++) {
    const start = performance.now();
    program.run();
    await program.read("tokens");
    if (repeat > 0) times.push(performance.now() - start); // the first one compiles shaders
  }
  return times;
}

function allocateCache(model: Model): void {
  const shape = [GPT2.n_positions, GPT2.n_head, GPT2.n_embd / GPT2.n_head];
  const names = Array.from({ length: GPT2.n_layer }, (_, layer) => Object.values(cacheNames(layer))).flat();
  model.store.allocate("cache", names.map((name) => ({ name, shape, dtype: "f32" })));
}
