/** Linear cross-entropy by every candidate against f64: chunks, padding, ignored targets, running sums. */
import assert from "node:assert/strict";
import { type Call, type Capabilities, Graph, type Tensor } from "../../kernels/gpu/graph.ts";
import { bytesOf, draw, offers } from "../../kernels/gpu/blueprint.ts";
import { Layout } from "../../kernels/gpu/layout.ts";
import { cast, type FloatType } from "../../kernels/cast.ts";
import { linearCrossEntropy, linearCrossEntropyWithGradients } from "../../kernels/linear_cross_entropy.ts";
import { checkOp, randomF32, testDevice } from "../harness.ts";
import { bindingLimit } from "./run_graph.ts";
import { gradients, rowLosses } from "../reference/linear_cross_entropy.ts";

interface Case {
  readonly rows: number;
  readonly columns: number;
  readonly padded: number;
  readonly vocabulary: number;
  readonly logitsBytes?: number;
  readonly change?: (device: Capabilities) => Capabilities;
  /** Of hidden and weight. */
  readonly format?: FloatType;
}

/** Every third target is ignored. */
function targetsOf({ rows, vocabulary }: Case): Int32Array {
  return Int32Array.from({ length: rows }, (_, n) => n % 3 === 2 ? -100 : (n * 2654435761) % vocabulary);
}

/** Logits are sums of `columns` products below 1 times 3; an error of a logit is an error of its row's loss. */
function tolerance({ columns, rows }: Case) {
  return { atol: 3 * (columns + rows) * 2 ** -24, rtol: 1e-5 };
}

/** Numbers that every format holds exactly. */
function coarse(length: number, seed: number, scale = 1): Float32Array {
  return randomF32(length, seed, scale * 64).map((x) => Math.round(x) / 64);
}

function inputsOf(sizes: Case) {
  const { rows, columns, padded } = sizes;
  return [
    { shape: [rows, columns], data: coarse(rows * columns, 1, 3) },
    { shape: [padded, columns], data: coarse(padded * columns, 2) },
    { shape: [rows], data: targetsOf(sizes) },
    { shape: [1], data: Float32Array.of(0.25), grad: false },
  ];
}

function under(outputs: readonly Tensor[], change: Case["change"]): readonly Tensor[] {
  if (change === undefined) return outputs;
  const { op, inputs, attrs } = outputs[0].source as Call;
  const made = outputs[0].graph.apply(
    { ...op, kernels: (call, device) => op.kernels(call, change(device)) },
    inputs,
    attrs,
  );
  return outputs.map((output) => made[(output.source as Call).outputs.indexOf(output)]);
}

/** The loss and its gradients by the differentiated op. */
function checkLoss(sizes: Case): Promise<number> {
  return checkOp({
    ...tolerance(sizes),
    samples: 6,
    inputs: inputsOf(sizes),
    build: (_, [x, w, targets, scale]) => {
      const [hidden, weight] = [x, w].map((operand) => cast(operand, sizes.format ?? "f32"));
      const { loss } = linearCrossEntropy(hidden, weight, targets, scale, sizes);
      return under([loss], sizes.change);
    },
    reference: ([hidden, weight, targets, [scale]]) => {
      const losses = rowLosses(hidden, weight, targets, sizes);
      return Float64Array.of(scale * losses.reduce((sum, loss) => sum + loss, 0));
    },
  });
}

/** All outputs of the op that makes the gradients too, once returned and once added to a running sum. */
function checkGradients(sizes: Case): Promise<number> {
  const inputs = inputsOf(sizes).map((input) => ({ ...input, grad: false }));
  return checkOp({
    ...tolerance(sizes),
    inputs: [...inputs, { shape: inputs[1].shape, data: randomF32(sizes.padded * sizes.columns, 9), grad: false }],
    build: (_, [x, w, targets, scale, into]) => {
      const [hidden, weight] = [x, w].map((operand) => cast(operand, sizes.format ?? "f32"));
      const made = linearCrossEntropyWithGradients(hidden, weight, targets, scale, sizes);
      const { dweight } = linearCrossEntropyWithGradients(hidden, weight, targets, scale, { ...sizes, into });
      return [
        ...under([made.loss, made.rowLosses, made.dhidden, made.dweight], sizes.change),
        ...under([dweight], sizes.change),
      ];
    },
    reference: ([hidden, weight, targets, [scale], into]) => {
      const losses = rowLosses(hidden, weight, targets, sizes);
      const { dhidden, dweight } = gradients(hidden, weight, targets, scale, sizes);
      const loss = Float64Array.of(scale * losses.reduce((sum, loss) => sum + loss, 0));
      return [loss, losses, dhidden, dweight, dweight.map((value, i) => value + into[i])];
    },
  });
}

Deno.test("loss and gradients by every candidate, vocabulary padded and no multiple of 4", async () => {
  const candidates = await checkLoss({ rows: 70, columns: 64, padded: 320, vocabulary: 261 });
  assert.ok(candidates >= 5, `only ${candidates} candidates`);
});

Deno.test("rows in chunks: loss, row losses, both gradients, running sum", async () => {
  await checkGradients({ rows: 150, columns: 64, padded: 192, vocabulary: 190, logitsBytes: 1 });
});

Deno.test("sizes that are no multiple of anything", async () => {
  await checkGradients({ rows: 67, columns: 13, padded: 41, vocabulary: 37, logitsBytes: 1 });
});

for (const format of ["bf16", "f16"] as const) {
  Deno.test(`hidden and weight in ${format}: every candidate, and no multiple of anything`, async () => {
    await checkLoss({ rows: 70, columns: 128, padded: 192, vocabulary: 190, logitsBytes: 1, format });
    await checkGradients({ rows: 70, columns: 128, padded: 192, vocabulary: 190, logitsBytes: 1, format });
    await checkGradients({ rows: 67, columns: 13, padded: 41, vocabulary: 37, format });
  });
}

Deno.test("one row, one column, a vocabulary of two", async () => {
  await checkGradients({ rows: 1, columns: 1, padded: 2, vocabulary: 2 });
});

Deno.test("a weight past the binding limit, cut over the vocabulary", async () => {
  const sizes = { rows: 64, columns: 128, padded: 256, vocabulary: 250 };
  await checkGradients({ ...sizes, change: bindingLimit(64 * 256 * 4, 128) });
});

Deno.test("the kernels for GPUs", async () => {
  const change = (device: Capabilities) => ({ ...device, cpu: false, subgroupSize: 0 });
  await checkGradients({ rows: 67, columns: 20, padded: 128, vocabulary: 101, change });
});

Deno.test("logits of hundreds neither overflow nor lose the loss", async () => {
  const graphInputs = [
    { shape: [2, 4], data: Float32Array.of(100, 0, 0, 0, 0, 100, 0, 0), grad: false },
    { shape: [4, 4], data: Float32Array.of(5, 0, 0, 0, 0, 5, 0, 0, 0, 0, 5, 0, 0, 0, 0, 5), grad: false },
    { shape: [2], data: Int32Array.of(0, 0) },
    { shape: [1], data: Float32Array.of(1), grad: false },
  ];
  await checkOp({
    atol: 1e-6,
    rtol: 1e-6,
    inputs: graphInputs,
    build: (_, [hidden, weight, targets, scale]) => {
      return linearCrossEntropy(hidden, weight, targets, scale, { vocabulary: 4 }).rowLosses;
    },
    reference: () => Float64Array.of(0, 500),
  });
});

Deno.test("memory grows with rows and with the vocabulary, not with their product", async () => {
  const { capabilities } = await testDevice();
  const [columns, logitsBytes] = [64, 50 << 20];
  for (const [rows, vocabulary] of [[4096, 16384], [16384, 16384], [4096, 65536]]) {
    const graph = new Graph();
    const inputs = [
      graph.input("hidden", [rows, columns]),
      graph.input("weight", [vocabulary, columns]),
      graph.input("targets", [rows], "i32"),
      graph.input("scale", [1]),
    ] as const;
    const outputs = Object.values(linearCrossEntropyWithGradients(...inputs, { vocabulary }));
    const [{ call, candidates }] = offers(graph, outputs, capabilities);
    const operands = 4 * columns * (rows + vocabulary);
    for (const dispatches of candidates.slice(0, 2)) {
      const drawn = draw(graph, outputs, [{ call, dispatches }], new Layout(capabilities.limits), capabilities);
      // Operands and their gradients as buffers, operands as textures by rows and by columns, a chunk of logits as both.
      const { total } = bytesOf(drawn);
      assert.ok(total < 6 * operands + 2.1 * logitsBytes, `${total} bytes for ${rows} rows of ${vocabulary}`);
      assert.ok(total < 0.6 * 4 * rows * vocabulary, `${total} bytes for ${rows} rows of ${vocabulary}`);
    }
  }
});

Deno.test("cross-entropy refuses what doesn't fit", () => {
  const graph = new Graph();
  const [hidden, weight, scale] = [graph.input("h", [4, 6]), graph.input("w", [8, 6]), graph.input("s", [1])];
  const targets = graph.input("t", [4], "i32");
  const make = (vocabulary: number, other = targets) =>
    linearCrossEntropy(hidden, weight, other, scale, { vocabulary });
  assert.throws(() => make(9), /vocabulary 9 is not 1 to 8/);
  assert.throws(() => make(8, graph.input("u", [4], "u32")), /targets are \(4\) u32, want one i32 a row/);
  assert.throws(() => linearCrossEntropy(weight, graph.input("x", [8, 5]), targets, scale, { vocabulary: 8 }), {
    name: "RangeError",
    message: /both must be f32, bf16 or f16 matrices of the same width/,
  });
  const { rowLosses } = make(8);
  assert.throws(() => {
    const call = rowLosses.source as Call;
    call.op.vjp!(call, [null, graph.input("g", [4])], []);
  }, /use its loss/);
});
