/** The device, the store and programs on the adapter at hand. */
import assert from "node:assert/strict";
import { openDevice } from "../../../kernels/gpu/device.ts";
import { apply, type Call, type Capabilities, Graph, type Op, type Tensor } from "../../../kernels/gpu/graph.ts";
import { accumulate, fill, rowSlice } from "../../../kernels/gpu/primitives.ts";
import { compile } from "../../../kernels/gpu/program.ts";
import { createStore } from "../../../kernels/gpu/store.ts";
import { testDevice } from "../../harness.ts";

const floats = (...values: number[]) => new Float32Array(values);

/** The kernels of the op `fill`, for another call's output. */
function fillWith(x: Tensor, value: number, capabilities: Capabilities) {
  const filled = fill(new Graph(), x.shape, value);
  const call = filled.source as Call;
  return call.op.kernels({ ...call, outputs: [x] }, capabilities)[0];
}

Deno.test("downloads give back what was uploaded, over and under a chunk", async () => {
  const device = await testDevice();
  for (const words of [1, 3, 1000, (5 << 20) + 1]) {
    const buffer = device.createBuffer(words * 4, "test");
    const data = Uint32Array.from({ length: words }, (_, i) => Math.imul(i, 2654435761));
    const whole = { buffer, offset: 0, size: words * 4 };
    device.upload(whole, data);
    const last = { buffer, offset: (words - 1) * 4, size: 4 };
    const read = (await device.download([last, whole, last])).map((bytes) => new Uint32Array(bytes));
    assert.equal(read[0][0], data[words - 1]);
    assert.ok(read[1].every((value, i) => value === data[i]), `${words} words`);
    assert.equal(read[2][0], data[words - 1]);
    device.destroy(buffer);
  }
});

Deno.test("transfers that would abort the process are refused", async () => {
  const device = await testDevice();
  const buffer = device.createBuffer(64, "test");
  const slice = { buffer, offset: 0, size: 64 };
  assert.throws(() => device.upload(slice, new Uint8Array(65)), /Cannot upload 65 bytes at 0: the slice holds 64/);
  assert.throws(() => device.upload(slice, new Uint8Array(3)), /multiples of 4/);
  assert.throws(() => device.upload(slice, new Uint8Array(8), 60), RangeError);
  device.upload(slice, new Uint8Array(0));
  assert.deepEqual(await device.download([]), []);
  assert.equal((await device.download([{ ...slice, size: 0 }]))[0].byteLength, 0);
  device.destroy(buffer);
});

Deno.test("bytes are counted, and destroyed buffers give them back", async () => {
  const device = await testDevice();
  const before = device.bytes;
  const buffer = device.createBuffer(1000, "test");
  const texture = device.createTexture(16, 4, "rgba32float");
  assert.equal(device.bytes - before, 1008 + 16 * 4 * 16);
  device.destroy(buffer, texture);
  device.destroy(buffer);
  assert.equal(device.bytes, before);
  assert.ok(device.peakBytes >= before + 1008);
  const { maxBufferSize } = device.capabilities.limits;
  assert.throws(() => device.createBuffer(maxBufferSize + 1, "huge"), /Cannot make buffer huge/);
});

Deno.test("no adapter is one line and exit code 3", async () => {
  const gpu = { requestAdapter: () => Promise.resolve(null) } as unknown as GPU;
  await assert.rejects(openDevice({ gpu }), {
    name: "UserError",
    exitCode: 3,
    message: /No WebGPU adapter found: install/,
  });
});

Deno.test("the adapter's limits are granted, and subgroups have one size that was tried", async () => {
  const { capabilities } = await testDevice();
  assert.ok(capabilities.limits.maxStorageBuffersPerShaderStage > 8);
  assert.ok([0, 4, 8, 16, 32, 64, 128].includes(capabilities.subgroupSize));
});

Deno.test("an error of the device ends its use with a message", async () => {
  using device = await openDevice();
  const buffer = device.createBuffer(64, "test");
  const encoder = device.gpu.createCommandEncoder();
  encoder.copyBufferToBuffer(buffer, 0, buffer, 60, 16);
  device.gpu.queue.submit([encoder.finish()]);
  await new Promise((resolve) => setTimeout(resolve, 0));
  assert.throws(() => device.check(), /GPU error on /);
  await assert.rejects(device.download([{ buffer, offset: 0, size: 16 }]), /GPU error on /);
});

Deno.test("an attempt throws the device's error, and the device goes on", async () => {
  using device = await openDevice();
  const buffer = device.createBuffer(64, "test");
  await assert.rejects(
    device.attempt(() => {
      const encoder = device.gpu.createCommandEncoder();
      encoder.copyBufferToBuffer(buffer, 0, buffer, 60, 16);
      device.gpu.queue.submit([encoder.finish()]);
      return Promise.resolve();
    }),
  );
  await assert.rejects(device.attempt(() => Promise.reject(new Error("its own"))), /its own/);
  assert.equal(await device.attempt(() => Promise.resolve(7)), 7);
  const [read] = await device.download([{ buffer, offset: 0, size: 16 }]);
  assert.equal(read.byteLength, 16);
});

Deno.test("the device's chooser picks, options pick before it", async () => {
  using device = await openDevice();
  const candidates: Op<undefined> = {
    name: "candidates",
    infer: ([x]) => [x],
    kernels: (call, capabilities) => [1, 2, 3].map((value) => fillWith(call.outputs[0], value, capabilities)),
    cost: () => ({ flops: 0, bytes: 0 }),
  };
  const run = async (choose?: () => number) => {
    const graph = new Graph();
    const [y] = apply(candidates, [graph.input("x", [4])], undefined);
    using store = createStore(device);
    using program = await compile(device, graph, { y }, store, { choose });
    program.run();
    return new Float32Array((await program.read("y"))[0])[0];
  };
  assert.equal(await run(), 1);
  device.chooser = { choose: (offers) => Promise.resolve(offers.map(({ candidates }) => candidates.length - 1)) };
  assert.equal(await run(), 3);
  assert.equal(await run(() => 1), 2);
});

Deno.test("a shader that doesn't compile names its kernel", async () => {
  const device = await testDevice();
  await assert.rejects(
    device.pipeline("broken", "@compute fn main() { nonsense }", []),
    /Cannot compile kernel broken/,
  );
});

Deno.test("a store lays a kind's variables out flat, decayed first, padding zero", async () => {
  const device = await testDevice();
  using store = createStore(device);
  store.allocate("parameter", [
    { name: "bias", shape: [3], dtype: "f32", decay: false },
    { name: "weight", shape: [5, 7], dtype: "f32", decay: true },
    { name: "other", shape: [2, 2], dtype: "f32", decay: true },
  ]);
  assert.deepEqual(store.ranges("parameter"), [
    { name: "parameter/0", elements: 128, decay: true },
    { name: "parameter/1", elements: 64, decay: false },
  ]);
  store.write("weight", Float32Array.from({ length: 35 }, (_, i) => i + 1));
  store.write("other", floats(7, 8, 9));
  const flat = new Float32Array(await store.read("parameter/0"));
  assert.deepEqual([flat[34], flat[35], flat[64], flat[66], flat[67]], [35, 0, 7, 9, 0]);
  assert.throws(() => store.allocate("parameter", []), /it stands already/);
  assert.throws(() => store.allocate("again", [{ name: "bias", shape: [1], dtype: "f32" }]), /the name is taken/);
  assert.throws(() => store.write("nothing", floats(1)), /Cannot find variable nothing/);
});

Deno.test("a program runs on new inputs, adds into variables, reads outputs together", async () => {
  const device = await testDevice();
  using store = createStore(device);
  store.allocate("v", [{ name: "total", shape: [4], dtype: "f32" }]);
  const graph = new Graph();
  const x = graph.input("x", [4]);
  const total = accumulate(graph.variable("total", [4]), x);
  const shifted = accumulate(fill(graph, [4], 0.5), x);
  const before = device.bytes;
  const program = await compile(device, graph, { total, shifted }, store, { boundaries: [total] });
  const segments: number[] = [];
  segments.push(...program.launch({ x: floats(1, 2, 3, 4) }));
  program.run({ x: floats(10, 20, 30, 40) });
  const [a, b] = (await program.read("total", "shifted")).map((bytes) => new Float32Array(bytes));
  assert.deepEqual([...a], [11, 22, 33, 44]);
  assert.deepEqual([...b], [10.5, 20.5, 30.5, 40.5]);
  assert.deepEqual(segments, [0, 1]);
  assert.match(program.toString(), /accumulate \[1, 1, 1\]/);
  assert.throws(() => program.run({ y: floats(1) }), /Cannot set input y/);
  assert.throws(() => program.run({ x: floats(1) }), /it has 4 bytes, the graph wants 16/);
  assert.throws(() => program.read("z"), /Cannot read z/);
  program[Symbol.dispose]();
  assert.equal(device.bytes, before);
});

Deno.test("a program refuses variables the store lacks or holds in another size", async () => {
  const device = await testDevice();
  using store = createStore(device);
  const graph = new Graph();
  const sum = accumulate(graph.variable("w", [4]), graph.input("x", [4]));
  await assert.rejects(compile(device, graph, { sum }, store), /the store has no variable w/);
  store.allocate("w", [{ name: "w", shape: [5], dtype: "f32" }]);
  await assert.rejects(compile(device, graph, { sum }, store), /w is \(5\) f32 in the store, \(4\) f32 here/);
});

Deno.test("a buffer bound to read and to write in one dispatch names the kernel", async () => {
  const device = await testDevice();
  using store = createStore(device);
  store.allocate("k", [{ name: "a", shape: [4], dtype: "f32" }, { name: "b", shape: [4], dtype: "f32" }]);
  const graph = new Graph();
  accumulate(graph.variable("a", [4]), graph.variable("b", [4]));
  await assert.rejects(compile(device, graph, {}, store), /Cannot run accumulate: it binds buffer k/);
});

/** Reads its input through a texture and doubles it. */
const doubleOp: Op<undefined> = {
  name: "double",
  infer: ([x]) => [x],
  kernels: ({ inputs: [x], outputs: [y] }) => [[{
    label: "double",
    wgsl: `@group(0) @binding(0) var x: texture_storage_2d<rgba32float, read>;
      @group(0) @binding(1) var<storage, read_write> y: array<vec4f>;
      @compute @workgroup_size(16) fn main(@builtin(global_invocation_id) id: vec3u) {
        y[id.y * 16u + id.x] = 2.0 * textureLoad(x, id.xy);
      }`,
    workgroups: [1, x.shape[0], 1],
    bindings: [
      { tensor: x, access: "read", as: { texture: "rgba32float", rowLength: 64 } },
      { tensor: y, access: "read_write" },
    ],
  }]],
  cost: () => ({ flops: 0, bytes: 0 }),
};

Deno.test("textures follow their source through in-place writes and slot reuse", async () => {
  const device = await testDevice();
  using store = createStore(device);
  const graph = new Graph();
  const double = (x: Tensor) => apply(doubleOp, [x], undefined)[0];
  const x = graph.input("x", [3, 64]);
  const first = double(x);
  const sum = accumulate(double(first), x); // 5x
  const both = accumulate(double(sum), double(first)); // 10x + 4x
  const again = double(accumulate(sum, both)); // 2 (5x + 14x)
  using program = await compile(device, graph, { first, both, again }, store);
  const data = Float32Array.from({ length: 192 }, (_, i) => i - 90);
  for (const factor of [1, 3]) {
    program.run({ x: data.map((value) => value * factor) });
    const read = (await program.read("first", "both", "again")).map((bytes) => new Float32Array(bytes));
    [2, 14, 38].forEach((times, i) => assert.deepEqual(read[i], data.map((value) => value * factor * times)));
  }
});

Deno.test("row slices are aligned and fit a binding", () => {
  assert.equal(rowSlice(256, 1024, 256), 4);
  assert.equal(rowSlice(96, 1000, 256), 8);
  assert.throws(() => rowSlice(4096, 1024, 256), /Cannot bind rows of 4096 bytes/);
});
