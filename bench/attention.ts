/** How fast attention is, and that its cost follows the sum of squared document lengths, not the square of the rows. */
import { attention } from "../kernels/attention.ts";
import { type Device, openDevice } from "../kernels/gpu/device.ts";
import { differentiate } from "../kernels/gpu/grad.ts";
import { count, type Graph } from "../kernels/gpu/graph.ts";
import { headsIn } from "../kernels/heads.ts";
import { driverOf } from "../train/adapters.ts";
import { type Built, openKernel } from "./gpu.ts";
import { type Bench, type BenchOptions, compare, type Result, select } from "./harness.ts";
import { operand } from "./work.ts";

interface Case {
  readonly name: string;
  readonly heads: number;
  /** Rows of each document; ROWS in all. */
  readonly document: number;
  readonly backward: boolean;
}

const ROWS = 2048;
/** Of a head. */
const WIDTH = 64;
const DOCUMENTS = [16, 32, 64, 128, 256, 512, 1024, 2048];
const REPEATS = 5;

/** Products of half a square each: two forward, five backward, which makes the scores again. */
const PRODUCTS = { forward: 2, both: 7 };

function caseOf(document: number, backward: boolean, heads = 4): Case {
  const pass = backward ? "forward and backward" : "forward";
  const squares = `ΣL² ${(ROWS * document / 1e6).toFixed(2)} M`;
  return { name: `${pass}, ${heads} heads, documents of ${document}, ${squares}`, heads, document, backward };
}

const CASES: readonly Case[] = [
  ...[false, true].flatMap((backward) => DOCUMENTS.map((document) => caseOf(document, backward))),
  caseOf(1024, false, 12),
  caseOf(1024, true, 12),
];

function flopsOf({ heads, document, backward }: Case): number {
  const products = backward ? PRODUCTS.both : PRODUCTS.forward;
  return products * heads * WIDTH * ROWS * (document + 1);
}

/** Attention as a model calls it: q, k and v side by side in the rows that one product wrote, and their gradients too. */
function open(device: Device, options: BenchOptions, { heads, document, backward }: Case) {
  return openKernel(device, (graph: Graph): Built => {
    const qkv = graph.input("qkv", [ROWS, 3 * heads * WIDTH]);
    const starts = graph.input("starts", [ROWS], "u32");
    const [q, k, v] = headsIn(qkv, [heads, heads, heads], WIDTH);
    const o = attention(q, k, v, starts, { scale: 1 / Math.sqrt(WIDTH), longest: document });
    const inputs = {
      qkv: operand(count(qkv), 1),
      starts: Uint32Array.from({ length: ROWS }, (_, row) => row - row % document),
    };
    if (!backward) return { outputs: { o }, inputs };
    const dy = graph.input("dy", o.shape);
    const [dqkv] = differentiate([{ tensor: o, gradient: dy }], [qkv]);
    return { outputs: { o, dqkv }, inputs: { ...inputs, dy: operand(count(dy), 2) } };
  }, options);
}

export async function benchAttention(options: BenchOptions): Promise<Bench> {
  using device = await openDevice();
  const repeats = options.repeats ?? REPEATS;
  const results: Result[] = [];
  for (const shape of select(CASES, options.case)) {
    await using ours = await open(device, options, shape);
    const { name } = shape;
    const { progress } = options;
    results.push(
      ...(await compare({ name, amount: { flops: flopsOf(shape) }, ours, peers: [], repeats, progress })).results,
    );
  }
  const config = { repeats, rows: ROWS, head_width: WIDTH, dtype: "f32" };
  return { name: "attention", adapter: device.name, driver: driverOf(device.info), config, results };
}
