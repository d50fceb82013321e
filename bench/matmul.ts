/** How fast matrix products are: the standard one in all forms and formats, GPT-2's, and those of few rows. */
import { type Device, openDevice } from "../kernels/gpu/device.ts";
import type { DType, Graph } from "../kernels/gpu/graph.ts";
import { matmul } from "../kernels/matmul.ts";
import { driverOf } from "../train/adapters.ts";
import { type KernelOptions, openKernel } from "./gpu.ts";
import {
  type Bench,
  type BenchOptions,
  compare,
  type Contender,
  type Failure,
  type Result,
  select,
} from "./harness.ts";
import { checkProduct, operand, type Product, productFlops, sizesOf, STANDARD_PRODUCT } from "./work.ts";

/** Formats of A and B. */
type Formats = readonly [a: DType, b: DType];

interface Case extends Product {
  readonly name: string;
  readonly formats: Formats;
  readonly subgroups: boolean;
}

const F32: Formats = ["f32", "f32"];

function caseOf(product: Product, formats: Formats = F32, subgroups = true): Case {
  const label = formats[0] === formats[1] ? formats[0] : formats.join(" by ");
  const name = `${sizesOf(product)} ${product.form} ${label}${subgroups ? "" : ", no subgroups"}`;
  return { ...product, name, formats, subgroups };
}

/** Products of a GPT-2 124M step over 512 tokens: m, k, n. */
const GPT2: readonly Product[] = [
  { m: 512, k: 768, n: 2304, form: "nn" },
  { m: 512, k: 768, n: 3072, form: "nn" },
  { m: 512, k: 3072, n: 768, form: "nn" },
  { m: 512, k: 3072, n: 768, form: "nt" },
  { m: 768, k: 512, n: 3072, form: "tn" },
  { m: 512, k: 768, n: 50304, form: "nt" },
];

const FEW_ROWS = [1, 4, 16, 64];

const CASES: readonly Case[] = [
  ...(["nn", "nt", "tn"] as const).flatMap((form) => {
    const product = { ...STANDARD_PRODUCT, form };
    return [caseOf(product), caseOf(product, F32, false)];
  }),
  caseOf(STANDARD_PRODUCT, ["f32", "bf16"]),
  caseOf(STANDARD_PRODUCT, ["bf16", "bf16"]),
  caseOf({ ...STANDARD_PRODUCT, form: "nt" }, ["bf16", "bf16"]),
  ...GPT2.map((product) => caseOf(product)),
  ...FEW_ROWS.flatMap((m) => [
    caseOf({ m, k: 768, n: 3072, form: "nn" }),
    caseOf({ m, k: 768, n: 3072, form: "nn" }, ["f32", "bf16"]),
  ]),
];

const REPEATS = 7;

/** The product as a contender. Throws where the kernels are wrong or don't take the formats. */
export async function openProduct(
  device: Device,
  product: Product,
  options: KernelOptions,
  [formatA, formatB]: Formats = F32,
): Promise<Contender> {
  const { m, k, n, form } = product;
  const [a, b] = [operand(m * k, 1), operand(k * n, 2)];
  const kernel = await openKernel(device, (graph: Graph) => ({
    outputs: {
      c: matmul(
        graph.input("a", form === "tn" ? [k, m] : [m, k], formatA),
        graph.input("b", form === "nt" ? [n, k] : [k, n], formatB),
        { transposeA: form === "tn", transposeB: form === "nt" },
      ),
    },
    inputs: { a: pack(a, formatA), b: pack(b, formatB) },
  }), options);
  try {
    checkProduct(product, a, b, new Float32Array((await kernel.program.read("c"))[0]));
  } catch (error) {
    await kernel[Symbol.asyncDispose]();
    throw error;
  }
  return kernel;
}

/** bf16 numbers are the upper halves of f32; rows here are even, so that they lie packed without gaps. */
function pack(values: Float32Array, format: DType): ArrayBufferView {
  return format === "bf16" ? Uint16Array.from(new Uint32Array(values.buffer), (bits) => bits >>> 16) : values;
}

export async function benchMatmul(options: BenchOptions): Promise<Bench> {
  using device = await openDevice();
  const repeats = options.repeats ?? REPEATS;
  const results: Result[] = [];
  const failed: Failure[] = [];
  for (const { name, formats, subgroups, ...product } of select(CASES, options.case)) {
    if (device.capabilities.subgroupSize === 0 && subgroups) continue;
    try {
      await using ours = await openProduct(device, product, { ...options, noSubgroups: !subgroups }, formats);
      const amount = { flops: productFlops(product) };
      const { progress } = options;
      results.push(...(await compare({ name, amount, ours, peers: [], repeats, progress })).results);
    } catch (error) {
      device.check();
      failed.push({ case: name, reason: error instanceof Error ? error.message : String(error) });
    }
  }
  return { name: "matmul", adapter: device.name, driver: driverOf(device.info), config: { repeats }, results, failed };
}
