/** Quantization to nearest, and products with and rows of quantized weights against f64 of what the weights stand for. */
import assert from "node:assert/strict";
import type { Capabilities } from "../../kernels/gpu/graph.ts";
import { type Along, type IntegerFormat, quantize } from "../../kernels/quantize.ts";
import { dequantize, quantizedEmbedding, quantizedMatmul, quantizedTypes } from "../../kernels/quantized.ts";
import { assertClose } from "../close.ts";
import { randomF32 } from "../harness.ts";
import { matmul } from "../reference/matmul.ts";
import { dequantize as reference, scaleAt } from "../reference/quantized.ts";
import { bindingLimit, runGraph, type RunOptions } from "./run_graph.ts";

const FORMATS = ["int8", "int4"] as const;
const ALONG = ["rows", "columns"] as const;

/** Weights whose groups differ much in size, some of them zero. */
function weights(rows: number, columns: number): Float32Array {
  return randomF32(rows * columns, 5).map((value, i) => {
    const [row, column] = [Math.floor(i / columns), i % columns];
    return row === 3 || column === 5 ? 0 : value * 2 ** (row % 5 - column % 3);
  });
}

for (const format of FORMATS) {
  for (const along of ALONG) {
    Deno.test(`${format} along ${along}: every weight is the nearest that its scale allows`, () => {
      for (const [rows, columns] of [[64, 96], [33, 70], [5, 3]] as const) {
        const original = weights(rows, columns);
        const quantized = quantize(original, [rows, columns], format, along);
        const restored = reference(quantized, [rows, columns], format, along);
        restored.forEach((value, i) => {
          const scale = Math.abs(scaleAt(quantized.scales, Math.floor(i / columns), i % columns, columns, along));
          // int4 has one more step on one side, so that the other side's end may be a whole step off.
          const most = (format === "int8" ? 0.5 : 1) * scale;
          assert.ok(Math.abs(value - original[i]) <= most * (1 + 1e-5), `${i}: ${original[i]} became ${value}`);
        });
      }
    });
  }
}

Deno.test("what can't be quantized is refused", () => {
  assert.throws(() => quantize(Float32Array.of(1, NaN), [1, 2], "int8", "rows"), /a group of weights holds NaN/);
  assert.throws(() => quantize(new Float32Array(4), [2, 3], "int8", "rows"), /4 values as \(2, 3\)/);
});

interface Product {
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly format: IntegerFormat;
  readonly transposeB: boolean;
  readonly change?: (device: Capabilities) => Capabilities;
}

async function checkProduct({ m, n, k, format, transposeB, change }: Product): Promise<void> {
  const along: Along = transposeB ? "rows" : "columns";
  const shape = transposeB ? [n, k] as const : [k, n] as const;
  const quantized = quantize(weights(...shape), shape, format, along);
  const [x, bias] = [randomF32(m * k, 1), randomF32(n, 2)];
  const dense = reference(quantized, [...shape], format, along);
  const expected = matmul(Float64Array.from(x), dense, { m, n, k, transposeB }, Float64Array.from(bias));
  const size = dense.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  for (let choice = 0; choice < 4; choice++) {
    const { y } = await runGraph(
      (graph) => {
        const types = quantizedTypes(shape, format, along);
        const values = graph.input("values", types.values.shape, types.values.dtype);
        const scales = graph.input("scales", types.scales.shape);
        const inputs = { transposeB, bias: graph.input("bias", [n]) };
        return { y: quantizedMatmul(graph.input("x", [m, k]), { values, scales }, inputs) };
      },
      { x, values: quantized.values, scales: quantized.scales, bias },
      { choice, change },
    );
    // Sums of k products as large as `size`, each rounded by 2^-24, and one more rounding for the scale.
    const allowance = (k + 3) * 2 ** -24;
    assertClose(
      Float64Array.from(new Float32Array(y)),
      expected,
      { atol: allowance * size, rtol: allowance },
      `${choice}`,
    );
  }
}

const ADAPTERS: Readonly<Record<string, RunOptions["change"]>> = {
  "this adapter": undefined,
  "a CPU driver without subgroups": (device) => ({ ...device, cpu: true, subgroupSize: 0 }),
  "a GPU": (device) => ({ ...device, cpu: false }),
};

for (const format of FORMATS) {
  for (const [name, change] of Object.entries(ADAPTERS)) {
    Deno.test(`${format} products with few rows on ${name}`, async () => {
      for (const m of [1, 2, 5, 8, 11]) {
        await checkProduct({ m, n: 96, k: 64, format, transposeB: false, change });
        await checkProduct({ m, n: 48, k: 128, format, transposeB: true, change });
      }
      // Rows that textures take.
      await checkProduct({ m: 1, n: 512, k: 96, format, transposeB: false, change });
      await checkProduct({ m: 3, n: 64, k: 512, format, transposeB: true, change });
    });
  }
  Deno.test(`${format} products with many rows or odd sizes expand the weights first`, async () => {
    for (const transposeB of [false, true]) {
      await checkProduct({ m: 40, n: 96, k: 64, format, transposeB });
      await checkProduct({ m: 2, n: 52, k: 70, format, transposeB });
    }
  });
  Deno.test(`${format} tables: rows by id, all rows, by slices past the binding limit`, async () => {
    const [V, C] = [150, 72];
    const quantized = quantize(weights(V, C), [V, C], format, "rows");
    const dense = reference(quantized, [V, C], format, "rows");
    const ids = Uint32Array.of(0, 149, 64, 3, 150, 149);
    for (const change of [undefined, bindingLimit(64 * C * 4)]) {
      const result = await runGraph(
        (graph) => {
          const types = quantizedTypes([V, C], format, "rows");
          const table = {
            values: graph.input("values", types.values.shape, types.values.dtype),
            scales: graph.input("scales", types.scales.shape),
          };
          const rows = quantizedEmbedding(table, graph.input("ids", [ids.length], "u32"));
          return { rows, all: dequantize(table, "rows") };
        },
        { values: quantized.values, scales: quantized.scales, ids },
        { change },
      );
      // One rounding of integer times scale.
      const tolerance = { atol: 0, rtol: 2 ** -24 };
      assertClose(Float64Array.from(new Float32Array(result.all)), dense, tolerance, "all rows");
      const expected = [...ids].flatMap((id) =>
        id < V ? [...dense.subarray(id * C, (id + 1) * C)] : Array<number>(C).fill(0)
      );
      assertClose(
        Float64Array.from(new Float32Array(result.rows)),
        Float64Array.from(expected),
        tolerance,
        "rows by id",
      );
    }
  });
}
