/**
 * What users of a server get: tokens a second and how long they wait, at 1 to 64 streams over HTTP, of GPT-2 124M's shape
 * with random weights. It knows no kernel.
 */
import { join } from "node:path";
import { openDevice } from "../kernels/gpu/device.ts";
import { loadTokenizer } from "../model/tokenizer.ts";
import { driverOf } from "../train/adapters.ts";
import { type Bench, type BenchOptions, median, type Result, resultOf, select } from "./harness.ts";
import { GPT2, randomModel } from "./random_model.ts";
import { openServer, type Timed, timeStream } from "./served.ts";

/** Streams at once, and tokens of each: enough of them to time, few enough to end. */
const LOADS = [
  { streams: 1, tokens: 64 },
  { streams: 4, tokens: 48 },
  { streams: 16, tokens: 32 },
  { streams: 64, tokens: 24 },
];
const PROMPT = 32;
const PROBES = 9;

/** Tokens of each stream, made while all ran, from which a rate is taken. */
const ENOUGH = 4;

/** Aims on the reference machine, a CPU driver on two cores. */
const AIMS = { "16 streams": 6, "first token": 3 };

const CASES = [
  ...LOADS.map((load) => ({ name: `${load.streams} stream${load.streams > 1 ? "s" : ""}`, load })),
  { name: "first token", load: undefined },
];

/** A prompt that shares no beginning with another. */
const promptOf = (salt: number) => Array.from({ length: PROMPT }, (_, i) => (i * 7919 + salt * 104_729 + 1) % 50_000);

export async function benchServe(options: BenchOptions): Promise<Bench> {
  const cases = select(CASES, options.case);
  const folder = await Deno.makeTempDir();
  try {
    options.progress(`writing a model of ${GPT2.n_layer} layers`);
    const adapter = await writeModel(folder);
    options.progress("starting the server");
    await using server = await openServer(folder);
    await timeStream(server.url, { prompt: promptOf(0), tokens: 4, seed: 0 });
    const results: Result[] = [];
    const notes = [header()];
    let one: number | undefined;
    for (const { name, load } of cases) {
      options.progress(name);
      if (load === undefined) {
        const { results: probes, note } = await firstTokens(server.url);
        results.push(...probes);
        notes.push(note);
        continue;
      }
      const { result, rate, note } = await measure(server.url, name, load, one);
      if (load.streams === 1) one = rate;
      results.push(result);
      notes.push(note);
    }
    return { name: "serve", ...adapter, config: { prompt: PROMPT, ...GPT2 }, results, notes };
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

async function writeModel(folder: string): Promise<Pick<Bench, "adapter" | "driver">> {
  using device = await openDevice();
  using model = randomModel(device, GPT2, "f32");
  await model.save(folder);
  await (await loadTokenizer("gpt2")).save(folder);
  await Deno.writeTextFile(join(folder, "generation_config.json"), "{}");
  return { adapter: device.name, driver: driverOf(device.info) };
}

const header = () => "\nstreams        tokens/s  times one  first token p50/p90/p99 ms   a token p50/p90/p99 ms";

/** Streams that begin together; the rate is that from the time when all have begun to when the first ends. */
async function measure(
  url: string,
  name: string,
  { streams, tokens }: { streams: number; tokens: number },
  one?: number,
) {
  const runs = await Promise.all(
    Array.from(
      { length: streams },
      (_, i) => timeStream(url, { prompt: promptOf(streams * 100 + i), tokens, seed: i }),
    ),
  );
  const short = runs.find(({ at }) => at.length !== tokens);
  if (short) throw new Error(`${name}: got ${short.at.length} tokens, wanted ${tokens}`);
  const rate = jointRate(runs);
  const firsts = runs.map(({ at }) => at[0]);
  const each = runs.map(({ at }) => (at.at(-1)! - at[0]) / (at.length - 1));
  const times = one === undefined ? "" : (rate / one).toFixed(2);
  const aim = name === "16 streams" && one !== undefined ? `   aim >= ${AIMS["16 streams"]} times one` : "";
  const note = [
    name.padEnd(12),
    rate.toFixed(1).padStart(11),
    times.padStart(11),
    percentiles(firsts).padStart(29),
    percentiles(each).padStart(25),
  ].join("") + aim;
  return { rate, note, result: { ...resultOf(name, each), tokens_per_second: rate } };
}

function jointRate(runs: readonly Timed[]): number {
  const from = Math.max(...runs.map(({ start, at }) => start + at[0]));
  const to = Math.min(...runs.map(({ start, at }) => start + at.at(-1)!));
  const count = runs.flatMap(({ start, at }) => at.filter((time) => start + time > from && start + time <= to)).length;
  return count < ENOUGH * runs.length ? totalRate(runs) : count / (to - from) * 1000;
}

/** Where the first ended before the last had really begun: all tokens over all of the time. */
function totalRate(runs: readonly Timed[]): number {
  const from = Math.min(...runs.map(({ start }) => start));
  const to = Math.max(...runs.map(({ start, at }) => start + at.at(-1)!));
  return runs.reduce((sum, { at }) => sum + at.length, 0) / (to - from) * 1000;
}

function percentiles(values: readonly number[]): string {
  const sorted = values.toSorted((a, b) => a - b);
  const at = (part: number) => sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))];
  return [0.5, 0.9, 0.99].map((part) => at(part).toFixed(0)).join(" / ");
}

/** Time to the first token of a short prompt, with nothing else to do and under 16 streams. */
async function firstTokens(url: string): Promise<{ results: Result[]; note: string }> {
  const probe = async (salt: number) => (await timeStream(url, { prompt: promptOf(salt), tokens: 1, seed: 1 })).at[0];
  const probes = async (salt: number) => {
    const times: number[] = [];
    for (let i = 0; i < PROBES; i++) times.push(await probe(salt + i));
    return times;
  };
  const idle = await probes(20_000);
  const stop = new AbortController();
  let begun = 0;
  const all = Promise.withResolvers<void>();
  const streams = 16;
  const running = Array.from({ length: streams }, (_, i) => {
    let first = true;
    const onToken = () => {
      if (first && ++begun === streams) all.resolve();
      first = false;
    };
    return timeStream(url, { prompt: promptOf(30_000 + i), tokens: 900, seed: i, signal: stop.signal, onToken })
      .catch((error) => {
        if (!stop.signal.aborted) all.reject(error);
      });
  });
  await all.promise;
  const busy = await probes(40_000);
  stop.abort();
  await Promise.all(running);
  const ratio = median(busy) / median(idle);
  return {
    results: [
      resultOf("first token, idle", idle),
      { ...resultOf("first token under 16 streams", busy), ratio: { idle: 1 / ratio } },
    ],
    note:
      `\nfirst token of ${PROMPT} tokens: ${median(idle).toFixed(0)} ms idle, ${
        median(busy).toFixed(0)
      } under ${streams} streams: ` +
      `${ratio.toFixed(2)} times (aim <= ${AIMS["first token"]})`,
  };
}
