/** Gathering and scattering rows against plain loops: repeated ids, ids out of range, tables past the binding limit. */
import assert from "node:assert/strict";
import { embedding } from "../../kernels/embedding.ts";
import { differentiate } from "../../kernels/gpu/grad.ts";
import { type Call, type Capabilities, Graph, type Op } from "../../kernels/gpu/graph.ts";
import { checkOp, noise, randomF32, testDevice } from "../harness.ts";

/** Few distinct ids among many, so that chains are long. */
function repeated(length: number, rows: number): Uint32Array {
  return Uint32Array.from(noise(length, 5), (value) => Math.floor((value + 1) / 2 * rows) ** 2 % rows);
}

function gather(table: Float64Array, ids: Float64Array, columns: number): Float64Array {
  const y = new Float64Array(ids.length * columns);
  ids.forEach((id, row) => y.set(table.subarray(id * columns, (id + 1) * columns), row * columns));
  return y;
}

for (const [V, C, N] of [[37, 20, 150], [5, 7, 70], [1, 4, 66]] as const) {
  Deno.test(`embedding (${V}, ${C}) of ${N} rows`, async () => {
    await checkOp({
      build: (_, [table, ids]) => embedding(table, ids),
      reference: ([table, ids]) => gather(table, ids, C),
      inputs: [{ shape: [V, C], data: randomF32(V * C, 1) }, { shape: [N], data: repeated(N, V) }],
      // A gather copies; a scatter adds up to N values of size 1 in f32.
      atol: 0,
      rtol: 0,
      gradients: { atol: N * 2 ** -24 * 4, rtol: 1e-5 },
      samples: V * C,
    });
  });
}

Deno.test("an id past the table takes zeroes", async () => {
  await checkOp({
    build: (_, [table, ids]) => embedding(table, ids),
    reference: () => Float64Array.of(3, 4, 0, 0, 1, 2),
    inputs: [
      { shape: [2, 2], data: Float32Array.of(1, 2, 3, 4), grad: false },
      { shape: [3], data: Uint32Array.of(1, 2, 0) },
    ],
    atol: 0,
    rtol: 0,
  });
});

Deno.test("a table past the binding limit is bound by slices, each row written once", async () => {
  const { capabilities } = await testDevice();
  const small: Capabilities = {
    ...capabilities,
    limits: { ...capabilities.limits, maxStorageBufferBindingSize: 1024, minStorageBufferOffsetAlignment: 256 },
  };
  const graph = new Graph();
  const y = embedding(graph.variable("table", [37, 16]), graph.input("ids", [10], "u32"));
  const call = y.source as Call;
  const slices = (call.op as Op).kernels(call, small)[0].map(({ bindings }) => bindings[0].rows);
  assert.deepEqual(slices, [[0, 16], [16, 32], [32, 37]]);
  assert.throws(() => embedding(graph.variable("flat", [37]), y), /Cannot take rows/);
});

Deno.test("a scatter refuses more rows than the adapter's loops can search", async () => {
  const { capabilities } = await testDevice();
  const graph = new Graph();
  const y = embedding(graph.input("table", [9, 4]), graph.input("ids", [200], "u32"));
  const [gradient] = differentiate([{ tensor: y, gradient: y }], [graph.input("table", [9, 4])]);
  const call = gradient.source as Call;
  const offered = (loopIterations: number) => (call.op as Op).kernels(call, { ...capabilities, loopIterations });
  assert.throws(
    () => offered(200),
    /^RangeError: Cannot add 200 rows into a table: this adapter's loops end after 200/,
  );
  assert.equal(offered(300).length, 1);
});
