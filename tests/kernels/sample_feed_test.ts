/** Feeding a token on: what steps one after another leave in the ring and hand to the next, with and without alternatives. */
import assert from "node:assert/strict";
import { Graph } from "../../kernels/gpu/graph.ts";
import { compile } from "../../kernels/gpu/program.ts";
import { createStore } from "../../kernels/gpu/store.ts";
import { feedToken } from "../../kernels/sample_feed.ts";
import { testDevice } from "../harness.ts";

const [ROWS, K] = [3, 2];
const bits = (...values: number[]) => [...new Uint32Array(Float32Array.from(values).buffer)];

/** The ring and the other variables after steps that choose token 100 + i, from five draws made at position 9. */
async function feed(steps: number, withBest: boolean): Promise<{ ring: number[][]; left: number[] }> {
  const device = await testDevice();
  const shapes = { token: [1], position: [1], settings: [1, 4], ring: [ROWS, 2 + 2 * K] };
  using store = createStore(device);
  store.allocate("fed", Object.entries(shapes).map(([name, shape]) => ({ name, shape, dtype: "u32" })));
  store.write("position", Uint32Array.of(9));
  store.write("settings", Uint32Array.of(40, 1, 2, 5));
  const graph = new Graph();
  const variable = (name: keyof typeof shapes) => graph.variable(name, shapes[name], "u32");
  const best = { ids: graph.input("ids", [1, K], "u32"), logprobs: graph.input("values", [1, K]) };
  const ring = feedToken({
    token: variable("token"),
    position: variable("position"),
    settings: variable("settings"),
    ring: variable("ring"),
  }, {
    tokens: graph.input("tokens", [1], "u32"),
    logprobs: graph.input("logprobs", [1]),
    best: withBest ? best : undefined,
  });
  using program = await compile(device, graph, { ring }, store);
  for (let i = 0; i < steps; i++) {
    program.run({
      tokens: Uint32Array.of(100 + i),
      logprobs: i === 0 ? Float32Array.of(NaN) : Float32Array.of(-i),
      ids: Uint32Array.of(i, i + 1),
      values: Float32Array.of(-i / 2, -i),
    });
  }
  const [made] = await program.read("ring");
  const words = (buffer: ArrayBuffer) => [...new Uint32Array(buffer)];
  const left = await Promise.all(["token", "position", "settings"].map((name) => store.read(name)));
  const width = shapes.ring[1];
  return {
    ring: Array.from({ length: ROWS }, (_, row) => words(made).slice(row * width, (row + 1) * width)),
    left: left.flatMap(words),
  };
}

Deno.test("choices stand in the ring by the draws made before them, the oldest overwritten", async () => {
  const { ring, left } = await feed(4, true);
  const row = (i: number) => [100 + i, ...bits(-i), i, i + 1, ...bits(-i / 2, -i)];
  assert.deepEqual(ring, [row(1), row(2), row(3)]);
  assert.deepEqual(left, [103, 13, 40, 1, 2, 9]);
});

Deno.test("without alternatives their part of the ring is left, and a broken row's NaN is kept", async () => {
  const { ring, left } = await feed(1, false);
  assert.deepEqual(ring.slice(0, 2), [[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]);
  assert.equal(ring[2][0], 100);
  assert.ok(Number.isNaN(new Float32Array(Uint32Array.of(ring[2][1]).buffer)[0]));
  assert.deepEqual(left, [100, 10, 40, 1, 2, 6]);
});

Deno.test("shapes that don't belong together are refused", () => {
  const graph = new Graph();
  const input = (name: string, ...shape: number[]) => graph.input(name, shape, "u32");
  const fed = { token: input("a", 1), position: input("b", 1), settings: input("c", 1, 4), ring: input("d", 8, 6) };
  const choice = { tokens: input("e", 1), logprobs: graph.input("f", [1]) };
  const best = { ids: input("g", 1, 3), logprobs: graph.input("h", [1, 3]) };
  assert.throws(() => feedToken(fed, { ...choice, best }), /Cannot feed a token on by .*\(8, 6\) u32.*\(1, 3\) f32/);
  assert.throws(() => feedToken({ ...fed, token: input("i", 2) }, choice), RangeError);
});
