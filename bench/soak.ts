/**
 * Whether a server stays as it is under load that goes on: clients that ask, hang up, ask wrongly, while the memory of its
 * process is watched. It knows no speed.
 */
import { join } from "node:path";
import { openDevice } from "../kernels/gpu/device.ts";
import { loadTokenizer } from "../model/tokenizer.ts";
import { driverOf } from "../train/adapters.ts";
import { UserError } from "../model/errors.ts";
import { type Bench, type BenchOptions, median, resultOf } from "./harness.ts";
import { GPT2, randomModel } from "./random_model.ts";
import { openServer, type Served } from "./served.ts";

/** Small, so that requests end by the thousand; with GPT-2's vocabulary, whose rows are the largest. */
const CONFIG = { ...GPT2, n_layer: 2, n_embd: 64, n_head: 4, n_positions: 256 };
const CLIENTS = 24;
const MINUTES = 10;
const SAMPLE_SECONDS = 5;

/** Growth of resident memory over the second half that counts as none: allocators and collectors breathe. */
const BREATH = 0.05;

interface Counts {
  answered: number;
  refused: number;
  left: number;
  failed: string[];
}

/** `--repeats` gives the minutes. */
export async function benchSoak(options: BenchOptions): Promise<Bench> {
  const minutes = options.repeats ?? MINUTES;
  const folder = await Deno.makeTempDir();
  try {
    const adapter = await writeModel(folder);
    await using server = await openServer(folder, ["--kv-memory", "8M"]);
    const until = performance.now() + minutes * 60_000;
    const counts: Counts = { answered: 0, refused: 0, left: 0, failed: [] };
    const clients = Array.from({ length: CLIENTS }, (_, i) => client(server.url, i, until, counts));
    const memory = await watch(server, until, (line) => options.progress(`${line}, ${summary(counts)}`));
    await Promise.all(clients);
    const held = await heldBlocks(server.url);
    const half = memory.slice(Math.floor(memory.length / 2));
    const growth = median(half.slice(-Math.ceil(half.length / 4))) / median(half.slice(0, Math.ceil(half.length / 4))) -
      1;
    if (counts.failed.length > 0 || held !== 0 || growth > BREATH) {
      throw new UserError(
        `The server didn't stay as it was: ${summary(counts)}; ${held} blocks held, memory grew by ${
          (growth * 100).toFixed(1)
        } % ` +
          `over the second half; first failure: ${counts.failed[0] ?? "none"}`,
        1,
      );
    }
    const notes = [
      `${minutes} minutes: ${summary(counts)}; no block held at the end`,
      `resident memory ${megabytes(memory[0])} at first, ${
        megabytes(median(half))
      } in the second half, where it changed by ` +
      `${(growth * 100).toFixed(1)} %; most ${megabytes(Math.max(...memory))}`,
    ];
    const results = [resultOf("resident MB, each 5 s", memory.map((bytes) => bytes / 1e6))];
    return { name: "soak", ...adapter, config: { clients: CLIENTS, minutes }, results, notes };
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

const megabytes = (bytes: number) => `${(bytes / 1e6).toFixed(0)} MB`;

const summary = ({ answered, refused, left, failed }: Counts) =>
  `${answered} answered, ${refused} refused as they should be, ${left} left by their clients, ${failed.length} failed`;

async function writeModel(folder: string): Promise<Pick<Bench, "adapter" | "driver">> {
  using device = await openDevice();
  using model = randomModel(device, CONFIG, "f32");
  await model.save(folder);
  await (await loadTokenizer("gpt2")).save(folder);
  await Deno.writeTextFile(join(folder, "generation_config.json"), "{}");
  return { adapter: device.name, driver: driverOf(device.info) };
}

async function watch(server: Served, until: number, say: (line: string) => void): Promise<number[]> {
  const samples: number[] = [];
  while (performance.now() < until) {
    await new Promise((resolve) => setTimeout(resolve, SAMPLE_SECONDS * 1000));
    const bytes = await server.memory();
    if (bytes === undefined) throw new UserError("Install ps: nothing else tells a process's memory here", 1);
    samples.push(bytes);
    if (samples.length % 12 === 0) say(`${samples.length * SAMPLE_SECONDS / 60} min, ${megabytes(bytes)}`);
  }
  return samples;
}

/** One client: what it does next is decided by a counter, so that each does everything. */
async function client(url: string, first: number, until: number, counts: Counts): Promise<void> {
  for (let i = first; performance.now() < until; i += CLIENTS) {
    try {
      await request(url, i, counts);
    } catch (error) {
      counts.failed.push(error instanceof Error ? error.message : String(error));
    }
  }
}

async function request(url: string, i: number, counts: Counts): Promise<void> {
  const wrong = i % 11 === 0;
  const leaves = !wrong && i % 5 === 0;
  const body = {
    model: "bench",
    prompt: Array.from({ length: 1 + (i * 13) % 90 }, (_, k) => (i * 31 + k * 7) % 50_000),
    max_tokens: wrong ? -1 : leaves ? 100 : 1 + (i * 7) % 24,
    n: i % 7 === 0 ? 3 : 1,
    temperature: i % 3 === 0 ? 0 : 0.9,
    seed: i,
    stream: leaves || i % 2 === 0,
    logprobs: i % 4 === 0 ? 3 : undefined,
    frequency_penalty: i % 6 === 0 ? 0.5 : 0,
  };
  const leaving = new AbortController();
  const headers = { "content-type": "application/json" };
  const init = { method: "POST", headers, body: JSON.stringify(body), signal: leaving.signal };
  const response = await fetch(`${url}/v1/completions`, init);
  if (leaves) {
    const reader = response.body!.getReader();
    await reader.read();
    leaving.abort();
    await reader.cancel().catch(() => {});
    counts.left++;
    return;
  }
  const text = await response.text();
  if (response.status !== (wrong ? 400 : 200)) throw new Error(`${response.status}: ${text.slice(0, 200)}`);
  if (text.includes('"error"') !== wrong) throw new Error(text.slice(-300));
  if (wrong) counts.refused++;
  else counts.answered++;
}

async function heldBlocks(url: string): Promise<number> {
  await new Promise((resolve) => setTimeout(resolve, 1000)); // statistics come five times a second
  const text = await (await fetch(`${url}/metrics`)).text();
  return Number(/^wgpt_kv_blocks_used\{.*\} (\d+)$/m.exec(text)?.[1]);
}
