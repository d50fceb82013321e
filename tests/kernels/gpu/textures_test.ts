/** Textures of values and variables: when they are filled, what they cost, and that kept ones are never stale. */
import assert from "node:assert/strict";
import { apply, type Binding, Graph, type Op, type Tensor } from "../../../kernels/gpu/graph.ts";
import { accumulate } from "../../../kernels/gpu/primitives.ts";
import { compile } from "../../../kernels/gpu/program.ts";
import { createStore } from "../../../kernels/gpu/store.ts";
import { planTextures, type Region, viewOf } from "../../../kernels/gpu/textures.ts";
import { testDevice } from "../../harness.ts";

/** The sum of a (4, 64) f32 or packed tensor's words in f32, read through a texture. */
const summed: Op<undefined> = {
  name: "summed",
  infer: () => [{ shape: [4], dtype: "f32" }],
  kernels: ({ inputs: [x], outputs: [y] }) => [[{
    label: "summed",
    wgsl: `@group(0) @binding(0) var x: texture_storage_2d<rgba32float, read>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@compute @workgroup_size(4) fn main(@builtin(local_invocation_index) row: u32) {
  var sum = vec4f();
  for (var i = 0u; i < 16u; i++) { sum += textureLoad(x, vec2u(i, row)); }
  y[row] = dot(sum, vec4f(1.0));
}`,
    workgroups: [1, 1, 1],
    bindings: [{ tensor: x, access: "read", as: { texture: "rgba32float", rowLength: 64 } }, {
      tensor: y,
      access: "read_write",
    }],
  }]],
  cost: () => ({ flops: 0, bytes: 0 }),
};

const rowSums = (x: Tensor) => apply(summed, [x], undefined)[0];
const reading = (binding: Binding) => ({ label: "", wgsl: "", workgroups: [1, 1, 1] as const, bindings: [binding] });
const copies = (events: Parameters<typeof planTextures>[0], regionOf: (tensor: unknown) => Region) =>
  [...planTextures(events, regionOf).uses.values()].map((use) => "copy" in use && use.copy);

Deno.test("a texture is copied again only after its source was written", () => {
  const x = new Graph().input("x", [8, 64]);
  const view = { tensor: x, access: "read", as: { texture: "rgba32float", rowLength: 64 } } as const;
  const writing = reading({ tensor: x, access: "read_write" });
  const events = [reading({ ...view }), reading({ ...view }), writing, reading({ ...view }), { copied: x }];
  const all = [...events, reading({ ...view })];
  const region = { owner: "input x", from: 0, to: 2048 };
  assert.deepEqual(copies(all, () => region), [true, false, true, true]);
  assert.deepEqual(planTextures(all, () => region).shapes, [{ format: "rgba32float", width: 16, height: 8 }]);
});

Deno.test("a write to a range of variables makes textures of those within it old, and of no others", () => {
  const graph = new Graph();
  const tensors = [graph.variable("a", [8, 64]), graph.variable("b", [8, 64]), graph.variable("all/0", [512])];
  const from = [0, 4096, 0];
  const regionOf = (tensor: unknown): Region => {
    const index = tensors.indexOf(tensor as Tensor);
    return { owner: "store 0", from: from[index], to: from[index] + 2048 };
  };
  const read = (tensor: Tensor) => reading({ tensor, access: "read", as: { texture: "rgba32float", rowLength: 64 } });
  const [a, b, range] = tensors;
  const events = [read(a), read(b), reading({ tensor: range, access: "read_write" }), read(a), read(b)];
  // Both live on, in textures of their own only if neither takes the other's: the range's write frees a's.
  assert.deepEqual(copies(events.slice(0, 1).concat(events.slice(2, 4)), regionOf), [true, true]);
  assert.deepEqual(copies(events.slice(1, 3).concat(events[4]), regionOf), [true, false]);
});

Deno.test("a packed tensor's texture has four words a texel, and rows of whole 256 bytes", () => {
  const graph = new Graph();
  const view = (dtype: "bf16" | "i8" | "i4", rowLength: number, columns?: readonly [number, number]) =>
    viewOf({
      tensor: graph.variable(`${dtype} ${rowLength}`, [8, rowLength], dtype),
      access: "read",
      as: { texture: "rgba32uint", rowLength, rows: [2, 5], columns },
    });
  const shape = (width: number) => ({ format: "rgba32uint", width, height: 3 });
  assert.deepEqual(view("bf16", 256), { shape: shape(32), offset: 1024, rowBytes: 512 });
  assert.deepEqual(view("bf16", 256, [64, 128]), { shape: shape(8), offset: 1024 + 128, rowBytes: 512 });
  assert.deepEqual(view("i8", 768), { shape: shape(48), offset: 1536, rowBytes: 768 });
  assert.deepEqual(view("i4", 512, [32, 64]), { shape: shape(1), offset: 512 + 16, rowBytes: 256 });
  assert.throws(() => view("bf16", 64), /rows have 128 bytes and 8 texels, wanted a multiple of 256 bytes/);
  assert.throws(() => view("bf16", 128, [0, 4]), /0.5 texels, wanted .* whole texels/);
});

Deno.test("programs share a kept texture, which is filled again after a write and only then", async () => {
  const device = await testDevice();
  const staged = device.createBuffer(4, "read once, so that the staging buffer stands");
  await device.download([{ buffer: staged, offset: 0, size: 4 }]);
  device.destroy(staged);
  const before = device.bytes;
  const store = createStore(device);
  store.allocate("weight", [{ name: "w", shape: [4, 64], dtype: "f32" }]);
  store.allocate("other", [{ name: "o", shape: [4], dtype: "f32" }]);
  store.write("w", new Float32Array(256).fill(1));
  const reader = async () => {
    const graph = new Graph();
    const sums = rowSums(graph.variable("w", [4, 64]));
    accumulate(graph.variable("o", [4]), sums);
    return await compile(device, graph, { sums }, store, { keep: true });
  };
  const one = await reader();
  const held = device.bytes;
  const two = await reader();
  assert.equal(device.bytes - held, two.bytes, "the second program made a texture of its own");
  assert.equal(store.keptBytes, 1024);
  const first = async (program: typeof one) => {
    program.run();
    return new Float32Array((await program.read("sums"))[0])[0];
  };
  assert.equal(await first(one), 64);
  assert.equal(await first(two), 64);
  store.write("w", new Float32Array(64).fill(2));
  assert.equal(await first(two), 128);
  assert.equal(await first(one), 128);

  const graph = new Graph();
  accumulate(graph.variable("w", [4, 64]), graph.input("x", [4, 64]));
  const writer = await compile(device, graph, {}, store, { keep: true });
  writer.run({ x: new Float32Array(256).fill(0.5) });
  assert.equal(await first(one), 160);

  // What the store doesn't know of isn't seen: so a run without a write between copies nothing.
  device.upload(store.get("w")!, new Float32Array(256));
  assert.equal(await first(one), 160);
  for (const owner of [one, two, writer, store]) owner[Symbol.dispose]();
  assert.equal(device.bytes, before);
});

Deno.test("a program that writes a variable keeps no texture of it", async () => {
  const device = await testDevice();
  using store = createStore(device);
  store.allocate("weight", [{ name: "w", shape: [4, 64], dtype: "f32" }]);
  const graph = new Graph();
  const w = accumulate(graph.variable("w", [4, 64]), graph.input("x", [4, 64]));
  using program = await compile(device, graph, { sums: rowSums(w) }, store, { keep: true });
  for (const expected of [64, 128]) {
    program.run({ x: new Float32Array(256).fill(1) });
    assert.equal(new Float32Array((await program.read("sums"))[0])[0], expected);
  }
  assert.equal(store.keptBytes, 0);
});
