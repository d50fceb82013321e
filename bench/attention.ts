/** How fast attention is, and that its cost follows the sum of squared document lengths, not the square of the rows. */
import { attention } from "../kernels/attention.ts";
import { type Device, openDevice } from "../kernels/gpu/device.ts";
import { differentiate } from "../kernels/gpu/grad.ts";
import type { Graph } from "../kernels/gpu/graph.ts";
import { driverOf } from "../train/adapters.ts";
import { openKernel } from "./gpu.ts";
import { type Bench, type BenchOptions, compare, type Result, select } from "./harness.ts";
import { operand } from "./work.ts";

interface Case {
  readonly name: string;
  readonly heads: number;
  readonly width: number;
  /** Rows of each document; ROWS in all. */
  readonly document: number;
  readonly backward: boolean;
}

const ROWS = 2048;
const DOCUMENTS = [16, 32, 64, 128, 256, 512, 1024, 2048];
const REPEATS = 5;

/** Products of half a square each: two forward, five backward, which makes the scores again. */
const PRODUCTS = { forward: 2, both: 7 };

function caseOf(document: number, backward: boolean, heads = 4, width = 64): Case {
  const pass = backward ? "forward and backward" : "forward";
  const documents = `${ROWS / document} documents of ${document}, ΣL² ${(ROWS * document / 1e6).toFixed(2)} M`;
  return { name: `${pass}, ${heads} heads of ${width}, ${documents}`, heads, width, document, backward };
}

const CASES: readonly Case[] = [
  ...[false, true].flatMap((backward) => DOCUMENTS.map((document) => caseOf(document, backward))),
  caseOf(1024, false, 12),
  caseOf(1024, true, 12),
];

function flopsOf({ heads, width, document, backward }: Case): number {
  const products = backward ? PRODUCTS.both : PRODUCTS.forward;
  return products * heads * width * ROWS * (document + 1);
}

function open(device: Device, options: BenchOptions, { heads, width, document, backward }: Case) {
  return openKernel(device, (graph: Graph) => {
    const [q, k, v, dy] = ["q", "k", "v", "dy"].map((name) => ({
      name,
      data: operand(ROWS * heads * width, name.length),
    }));
    const input = ({ name }: { name: string }) => graph.input(name, [ROWS, heads, width]);
    const operands = [q, k, v].map(input);
    const starts = graph.input("starts", [ROWS], "u32");
    const [tq, tk, tv] = operands;
    const o = attention(tq, tk, tv, starts, { scale: 1 / Math.sqrt(width), longest: document });
    const gradients = backward ? differentiate([{ tensor: o, gradient: input(dy) }], operands) : [];
    return {
      outputs: Object.fromEntries([o, ...gradients].map((tensor, i) => [`out${i}`, tensor])),
      inputs: {
        ...Object.fromEntries([q, k, v, ...backward ? [dy] : []].map(({ name, data }) => [name, data])),
        starts: Uint32Array.from({ length: ROWS }, (_, row) => row - row % document),
      },
    };
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
  const config = { repeats, rows: ROWS, dtype: "f32" };
  return { name: "attention", adapter: device.name, driver: driverOf(device.info), config, results };
}
