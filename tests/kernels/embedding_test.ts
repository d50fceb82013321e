/** Gathering and scattering rows against plain loops: repeated ids, ids out of range, tables past the binding limit. */
import assert from "node:assert/strict";
import { embedding } from "../../kernels/embedding.ts";
import { differentiate } from "../../kernels/gpu/grad.ts";
import { type Call, type Capabilities, Graph, type Op } from "../../kernels/gpu/graph.ts";
import { fromF32, toF32 } from "../../model/float_formats.ts";
import { packRows } from "../../model/packed_rows.ts";
import { assertClose } from "../close.ts";
import { checkOp, noise, randomF32, testDevice } from "../harness.ts";
import { bindingLimit, runGraph } from "./run_graph.ts";

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

for (const dtype of ["bf16", "f16"] as const) {
  Deno.test(`rows of a table packed as ${dtype}, of any width, whole and by slices; its gradient is f32`, async () => {
    for (const [V, C] of [[301, 20], [301, 6], [301, 7], [64, 1]]) {
      const ids = Uint32Array.from([...repeated(70, V), V, V + 9]);
      const values = randomF32(V * C, C);
      const data = { table: packRows(values, C, dtype), ids, dy: randomF32(ids.length * C, 9) };
      const build = (graph: Graph) => {
        const table = graph.input("table", [V, C], dtype);
        const y = embedding(table, graph.input("ids", [ids.length], "u32"));
        const [dtable] = differentiate([{ tensor: y, gradient: graph.input("dy", [ids.length, C]) }], [table]);
        return { y, dtable };
      };
      const whole = await runGraph(build, data);
      const rounded = toF32({
        dtype: dtype === "f16" ? "F16" : "BF16",
        data: fromF32(values, dtype === "f16" ? "F16" : "BF16"),
      });
      const expected = new Float32Array(ids.length * C);
      ids.forEach((id, row) => id < V && expected.set(rounded.subarray(id * C, (id + 1) * C), row * C));
      assert.deepEqual(new Float32Array(whole.y), expected);
      const dtable = new Float64Array(V * C);
      ids.forEach((id, row) => {
        for (let c = 0; id < V && c < C; c++) dtable[id * C + c] += data.dy[row * C + c];
      });
      assertClose(new Float32Array(whole.dtable), dtable, { atol: 70 * 2 ** -24 * 4, rtol: 1e-5 });
      if (C > 1) assert.deepEqual(await runGraph(build, data, { change: bindingLimit(2048) }), whole, `${C} by slices`);
    }
  });
}
