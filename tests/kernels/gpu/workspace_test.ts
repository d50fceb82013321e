/** Memory that programs take turns in: what they share, what it holds, and that a plan without a device says the same. */
import assert from "node:assert/strict";
import { bytesOf, draw, offers } from "../../../kernels/gpu/blueprint.ts";
import { differentiate } from "../../../kernels/gpu/grad.ts";
import { Graph, type Tensor } from "../../../kernels/gpu/graph.ts";
import { Layout } from "../../../kernels/gpu/layout.ts";
import { compile } from "../../../kernels/gpu/program.ts";
import { createStore } from "../../../kernels/gpu/store.ts";
import { Pool, Workspace } from "../../../kernels/gpu/workspace.ts";
import { matmul } from "../../../kernels/matmul.ts";
import { gelu, multiply } from "../../../kernels/pointwise.ts";
import { testDevice } from "../../harness.ts";

/** Two products with a GELU between them, and where wanted their gradients. */
function network(rows: number, gradients: boolean): { graph: Graph; outputs: Record<string, Tensor> } {
  const graph = new Graph();
  const x = graph.input("x", [rows, 64]);
  const w = graph.variable("w", [64, 64]);
  const y = matmul(gelu(matmul(x, w), "tanh"), w);
  const seed = { tensor: y, gradient: graph.input("dy", [rows, 64]) };
  return { graph, outputs: gradients ? { dw: differentiate([seed], [w])[0] } : { y: multiply(y, seed.gradient) } };
}

const weight = [{ name: "w", shape: [64, 64], dtype: "f32" }] as const;

Deno.test("a pool gives each slot a place that fits, the smallest, and adds what is missing", () => {
  const pool = new Pool();
  const shape = { format: "rgba32float", width: 4, height: 2 } as const;
  const wants = (slots: number[], shapes: number, carrying: number[] = []) =>
    pool.take(
      {
        plan: { slots, carrying: new Set(carrying) },
        textures: { shapes: Array.from({ length: shapes }, () => shape) },
      } as unknown as Parameters<Pool["take"]>[0],
    );
  assert.deepEqual(wants([1000, 64, 32], 1, [1]), { slots: [0, 1, 2], textures: [0] });
  assert.deepEqual(wants([48, 40], 2), { slots: [1, 0], textures: [0, 1] });
  assert.deepEqual(wants([2000, 10], 0), { slots: [3, 2], textures: [] });
  assert.deepEqual(pool.slots, [1000, 64, 32, 2000]);
  assert.deepEqual(pool.bytes, { activations: 64, scratch: 1008 + 32 + 2000 + 2 * 128 });
});

Deno.test("programs that take turns hold what the larger needs, and each run is right", async () => {
  const device = await testDevice();
  const store = createStore(device);
  store.allocate("weight", weight);
  store.write("w", Float32Array.from({ length: 4096 }, (_, i) => Math.sin(i) / 8));
  const run = async (programs: readonly Awaited<ReturnType<typeof compile>>[]) => {
    const results: ArrayBuffer[] = [];
    for (const program of programs) {
      const [name] = Object.keys(program.outputs);
      const [rows] = program.inputs.includes("x") ? [program === programs[0] ? 96 : 32] : [0];
      const data = Float32Array.from({ length: rows * 64 }, (_, i) => Math.cos(i));
      program.run({ x: data, dy: data });
      results.push((await program.read(name))[0]);
    }
    return results;
  };
  const graphs = [network(96, true), network(32, false), network(32, true)];
  const make = (workspace?: Workspace) =>
    Promise.all(graphs.map(({ graph, outputs }) => compile(device, graph, outputs, store, { workspace })));
  const alone = await make();
  const expected = await run(alone);
  await device.download([store.get("w")!]);
  const own = alone.map(({ bytes }) => bytes);
  for (const program of alone) program[Symbol.dispose]();

  const before = device.bytes;
  const workspace = new Workspace(device);
  const shared = await make(workspace);
  assert.deepEqual(await run(shared), expected);
  assert.deepEqual(await run(shared), expected);
  const inputs = shared.reduce((sum, { bytes }) => sum + bytes, 0);
  const { activations, scratch } = workspace.pool.bytes;
  assert.equal(device.bytes - before, inputs + activations + scratch);
  assert.equal(activations, 2 * 96 * 64 * 4, "what the GELU takes and gives is kept for gradients");
  assert.ok(activations + scratch < own[0] + own[1] / 2, `${activations + scratch} bytes shared, ${own} alone`);
  for (const owner of [...shared, workspace]) owner[Symbol.dispose]();
  assert.equal(device.bytes, before);
  store[Symbol.dispose]();
});

Deno.test("a program holds what is drawn of it without a device", async () => {
  const device = await testDevice();
  using store = createStore(device);
  store.allocate("weight", weight);
  const layout = new Layout(device.capabilities.limits);
  layout.allocate("weight", weight);
  for (const { graph, outputs } of [network(96, true), network(7, false)]) {
    const roots = Object.values(outputs);
    const steps = offers(graph, roots, device.capabilities)
      .map(({ call, candidates }) => ({ call, dispatches: candidates[0] }));
    const { total } = bytesOf(draw(graph, roots, steps, layout, device.capabilities));
    const before = device.bytes;
    using program = await compile(device, graph, outputs, store, { choose: () => 0 });
    assert.equal(device.bytes - before, total);
    assert.equal(program.bytes, total);
  }
});
