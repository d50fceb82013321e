/** Products with few rows by every candidate, in every format of weights, against f64 of the values those stand for. */
import assert from "node:assert/strict";
import { apply, type Capabilities, type Graph, type Op } from "../../kernels/gpu/graph.ts";
import { fewCandidates } from "../../kernels/matmul_few.ts";
import { type FloatFormat, fromF32, toF32 } from "../../model/float_formats.ts";
import { assertClose } from "../close.ts";
import { randomF32 } from "../harness.ts";
import { matmul } from "../reference/matmul.ts";
import { bindingLimit, runGraph } from "./run_graph.ts";

interface Case {
  readonly form: "nn" | "nt";
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly format?: "f32" | "bf16" | "f16";
  readonly bias?: boolean;
  readonly accumulate?: boolean;
  /** What the product is told of the adapter. */
  readonly change?: (device: Capabilities) => Capabilities;
}

type Attrs = Required<Pick<Case, "form" | "bias" | "accumulate">>;

/** A product that offers nothing but the kernels for few rows; `found` counts them. */
function productOp(found: { candidates: number }, change: Case["change"]): Op<Attrs> {
  return {
    name: "few",
    infer: ([a, b], { form }) => [{ shape: [a.shape[0], b.shape[form === "nn" ? 1 : 0]], dtype: "f32" }],
    kernels({ inputs: [a, b, biasTensor], outputs: [c], attrs }, device) {
      const [m, k] = a.shape;
      const product = {
        ...attrs,
        m,
        n: c.shape[1],
        k,
        a: { tensor: a },
        b: { tensor: b },
        c: { tensor: c },
        biasTensor,
      };
      const candidates = fewCandidates(product, change?.(device) ?? device);
      found.candidates = candidates.length;
      return candidates;
    },
    cost: () => ({ flops: 0, bytes: 0 }),
    inPlace: ({ inputs, attrs }): Record<number, number> => attrs.accumulate ? { 0: inputs.length - 1 } : {},
  };
}

const STORED: Record<"f32" | "bf16" | "f16", FloatFormat> = { f32: "F32", bf16: "BF16", f16: "F16" };

async function check(given: Case): Promise<number> {
  const { form, m, n, k, format = "f32", bias = false, accumulate = false, change } = given;
  const stored = fromF32(randomF32(k * n, 2), STORED[format]);
  const data = { a: randomF32(m * k, 1), b: stored, bias: randomF32(n, 3), into: randomF32(m * n, 4) };
  const weights = Float64Array.from(toF32({ dtype: STORED[format], data: stored }));
  const product = matmul(Float64Array.from(data.a), weights, { m, n, k, transposeB: form === "nt" });
  const expected = product.map((value, i) => value + (bias ? data.bias[i % n] : 0) + (accumulate ? data.into[i] : 0));
  const found = { candidates: 1 };
  for (let choice = 0; choice < found.candidates; choice++) {
    const op = productOp(found, change);
    const build = (graph: Graph) => {
      const inputs = [graph.input("a", [m, k]), graph.input("b", form === "nn" ? [k, n] : [n, k], format)];
      if (bias) inputs.push(graph.input("bias", [n]));
      if (accumulate) inputs.push(graph.input("into", [m, n]));
      return { c: apply(op, inputs, { form, bias, accumulate })[0] };
    };
    const inputs = {
      a: data.a,
      b: data.b,
      ...(bias ? { bias: data.bias } : {}),
      ...(accumulate ? { into: data.into } : {}),
    };
    const { c } = await runGraph(build, inputs, { choice });
    assertClose(
      Float64Array.from(new Float32Array(c)),
      expected,
      { atol: (k + 2) * 2 ** -24, rtol: (k + 2) * 2 ** -24 },
      `candidate ${choice}`,
    );
  }
  return found.candidates;
}

/** Every manner: a CPU driver with and without subgroups, a GPU with and without. */
const ADAPTERS: Readonly<Record<string, (device: Capabilities) => Capabilities>> = {
  "this adapter": (device) => device,
  "a CPU driver without subgroups": (device) => ({ ...device, cpu: true, subgroupSize: 0 }),
  "a GPU": (device) => ({ ...device, cpu: false }),
  "a GPU without subgroups": (device) => ({ ...device, cpu: false, subgroupSize: 0 }),
};

for (const [name, change] of Object.entries(ADAPTERS)) {
  for (const format of ["f32", "bf16", "f16"] as const) {
    Deno.test(`few rows on ${name}, weights in ${format}`, async () => {
      for (const m of [1, 2, 3, 8]) {
        assert.ok(await check({ form: "nn", m, n: 72, k: 96, format, bias: true, change }) >= 1);
        assert.ok(await check({ form: "nt", m, n: 70, k: 96, format, bias: true, change }) >= 1);
      }
    });
  }
  Deno.test(`few rows on ${name}, through textures and at odd sizes`, async () => {
    for (const format of ["f32", "bf16"] as const) {
      await check({ form: "nn", m: 1, n: 384, k: 52, format, change });
      await check({ form: "nn", m: 4, n: 256, k: 132, format, accumulate: true, change });
      await check({ form: "nt", m: 1, n: 133, k: 384, format, accumulate: true, change });
      await check({ form: "nt", m: 3, n: 64, k: 128, format, change });
    }
  });
}

Deno.test("weights past a binding and a texture are cut by their rows", async () => {
  const change = bindingLimit(96 * 64 * 4, 128);
  assert.ok(await check({ form: "nt", m: 1, n: 300, k: 64, bias: true, change }) >= 3);
  assert.ok(await check({ form: "nt", m: 2, n: 300, k: 64, accumulate: true, change }) >= 2);
});

Deno.test("what doesn't suit is not offered", async () => {
  assert.equal(await check({ form: "nn", m: 9, n: 64, k: 64 }).catch(() => 0), 0);
  assert.equal(await check({ form: "nn", m: 1, n: 63, k: 64 }).catch(() => 0), 0);
});
