/** Tuning: choices written down and found again, candidates run against each other, winners kept on disk. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { Choices, describeCall, fingerprint } from "../../../kernels/gpu/choices.ts";
import { type Device, openDevice } from "../../../kernels/gpu/device.ts";
import { apply, type Call, type Dispatch, Graph, type Op, type Tensor } from "../../../kernels/gpu/graph.ts";
import { compile } from "../../../kernels/gpu/program.ts";
import { createStore } from "../../../kernels/gpu/store.ts";
import { cachedChoices, type TuneOptions, Tuner } from "../../../kernels/gpu/tune.ts";
import { listCaches } from "../../../kernels/gpu/tune_cache.ts";

/** Adds `value` to each element; the text says how many useless rounds it takes. */
function adds(value: number, rounds: number, text = "") {
  return (call: Call): Dispatch[] => [{
    label: `add after ${rounds} rounds`,
    wgsl: `
@group(0) @binding(0) var<storage, read_write> y: array<f32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  var z = x[id.x];
  for (var i = 0u; i < ${rounds}u; i++) { z = sin(z); }
  y[id.x] = x[id.x] + f32(${value}) + 1e-30 * z;${text}
}`,
    workgroups: [64, 1, 1],
    bindings: [{ tensor: call.outputs[0], access: "read_write" }, { tensor: call.inputs[0], access: "read" }],
  }];
}

const SLOW = 2000;

function fakeOp(name: string, ...candidates: ((call: Call) => Dispatch[])[]): Op<undefined> {
  return {
    name,
    infer: ([x]) => [x],
    kernels: (call) => candidates.map((candidate) => candidate(call as Call)),
    cost: () => ({ flops: 1, bytes: 1 }),
  };
}

/** Runs x + value of each op on zeros. @returns the first element of each result. */
async function run(device: Device, ...ops: Op<undefined>[]): Promise<number[]> {
  const graph = new Graph();
  const x = graph.input("x", [4096]);
  const outputs = Object.fromEntries(ops.map((op) => [op.name, apply(op, [x], undefined)[0]]));
  using store = createStore(device);
  using program = await compile(device, graph, outputs, store);
  program.run({ x: new Float32Array(4096) });
  return (await program.read(...Object.keys(outputs))).map((bytes) => new Float32Array(bytes)[0]);
}

interface Tuned {
  readonly results: number[];
  readonly calls: string[];
  readonly notes: string[];
  readonly summary: string | undefined;
}

async function tune(device: Device, options: TuneOptions, ...ops: Op<undefined>[]): Promise<Tuned> {
  const calls: string[] = [];
  const notes: string[] = [];
  using tuner = new Tuner(device, {
    onProgress: ({ call }) => calls.push(call.split(" ")[0]),
    note: (line) => notes.push(line),
    ...options,
  });
  device.chooser = tuner;
  const results = await run(device, ...ops);
  device.chooser = null;
  return { results, calls, notes, summary: tuner.summary() };
}

const callOf = (tensor: Tensor) => tensor.source as Call;

Deno.test("a call's description tells op, types, attributes and what is stored, not the program", () => {
  const op: Op<{ readonly n: number }> = {
    name: "fake",
    infer: ([x]) => [x],
    kernels: () => [],
    cost: () => ({ flops: 0, bytes: 0 }),
  };
  const call = (build: (graph: Graph) => Tensor[], n = 1) => {
    const graph = new Graph();
    return describeCall(callOf(graph.apply(op, build(graph), { n })[0]));
  };
  const plain = call((graph) => [graph.input("a", [2, 3])]);
  assert.equal(plain, 'fake (2, 3) f32 {"n":1}');
  assert.equal(call((graph) => [graph.reshape(graph.input("other", [6]), [2, 3])]), plain);
  assert.notEqual(call((graph) => [graph.input("a", [2, 3])], 2), plain);
  assert.equal(call((graph) => [graph.variable("a", [2, 3])]), 'fake (2, 3) f32 stored {"n":1}');
  const graph = new Graph();
  const kept = graph.apply(op, [graph.variable("a", [2, 3])], { n: 1 })[0];
  assert.equal(describeCall(callOf(kept), true), 'fake (2, 3) f32 kept {"n":1}');
  const twice = call((graph) => [graph.input("a", [2, 3]), graph.input("a", [2, 3])]);
  assert.equal(twice, 'fake (2, 3) f32, (2, 3) f32 as input 0 {"n":1}');
});

Deno.test("a candidate's fingerprint changes with text, grid and uniforms, not with names or the program", () => {
  const of = (change: Partial<Dispatch>, graph = new Graph()) => {
    const call = callOf(graph.apply(fakeOp("fake", adds(1, 1)), [graph.input("x", [4])], undefined)[0]);
    return fingerprint(call, [{ ...adds(1, 1)(call)[0], ...change }]);
  };
  const plain = of({});
  const later = new Graph();
  later.input("unused", [9]);
  assert.equal(of({ label: "another name" }, later), plain);
  assert.notEqual(of({ wgsl: "another text" }), plain);
  assert.notEqual(of({ workgroups: [65, 1, 1] }), plain);
  assert.notEqual(of({ uniforms: [1] }), plain);
});

Deno.test("recorded kernels are taken, and those that are gone are told", async () => {
  const op = fakeOp("fake", adds(1, 0), adds(2, 0));
  const graph = new Graph();
  const call = callOf(graph.apply(op, [graph.input("x", [4096])], undefined)[0]);
  const candidates = op.kernels(call as Call<undefined>, {} as never);
  const recorded = new Choices({ [describeCall(call)]: fingerprint(call, candidates[1]) });
  assert.deepEqual(await recorded.choose([{ call, candidates }]), [1]);
  assert.deepEqual(recorded.used, recorded.recorded);
  assert.deepEqual(recorded.missing, []);
  const gone = new Choices({ [describeCall(call)]: "0123456789abcdef" });
  assert.deepEqual(await gone.choose([{ call, candidates }]), [0]);
  assert.deepEqual(gone.missing, [describeCall(call)]);
  assert.deepEqual(gone.used, { [describeCall(call)]: fingerprint(call, candidates[0]) });
  assert.deepEqual(await new Choices().choose([{ call, candidates }]), [0]);
});

Deno.test("a slow candidate is never chosen, and what was found is kept until kernels change", async () => {
  using device = await openDevice();
  const folder = await Deno.makeTempDir();
  const first = fakeOp("first", adds(1, SLOW), adds(2, 0));
  const last = fakeOp("last", adds(3, 0), adds(4, SLOW), adds(5, SLOW));
  const tuned = await tune(device, { folder }, first, last);
  assert.deepEqual(tuned.results, [2, 3]);
  assert.deepEqual(tuned.calls.sort(), ["first", "last"]);
  assert.deepEqual(tuned.notes, []);
  assert.match(tuned.summary!, /^tuned 2 kernels in \d+ s; .*\d\.\d\d times faster$/);

  const again = await tune(device, { folder }, first, last);
  assert.deepEqual([again.results, again.calls, again.summary], [[2, 3], [], undefined]);
  const changed = fakeOp("first", adds(1, SLOW), adds(6, 0, "// changed"));
  const after = await tune(device, { folder }, changed, last);
  assert.deepEqual([after.results, after.calls], [[6, 3], ["first"]]);
  const full = await tune(device, { folder, again: true }, changed, last);
  assert.deepEqual([full.results, full.calls.length], [[6, 3], 2]);

  device.chooser = cachedChoices(device, folder, assert.fail);
  assert.deepEqual(await run(device, changed, last), [6, 3]);
  assert.deepEqual(await run(device, first), [1]); // its winner is gone, and nothing is tuned
  const [file, ...more] = listCaches(folder);
  assert.equal(more.length, 0);
  assert.equal(file.identity.name, device.name);
  assert.equal(file.identity.deno, Deno.version.deno);
  assert.deepEqual(Object.values(file.winners).map(({ kernel }) => kernel), [
    "add after 0 rounds",
    "add after 0 rounds",
  ]);
  await Deno.remove(folder, { recursive: true });
});

Deno.test("without time every call keeps its default, and is tuned when there is some", async () => {
  using device = await openDevice();
  const folder = await Deno.makeTempDir();
  const op = fakeOp("late", adds(1, SLOW), adds(2, 0));
  const none = await tune(device, { folder, seconds: 0 }, op);
  assert.deepEqual([none.results, none.calls], [[1], []]);
  assert.match(none.summary!, /no kernel was tuned; 1 wait until there is time/);
  assert.deepEqual((await tune(device, { folder, seconds: 60 }, op)).results, [2]);
  await Deno.remove(folder, { recursive: true });
});

Deno.test("what a time limit cuts off goes on where it stood", async () => {
  using device = await openDevice();
  const folder = await Deno.makeTempDir();
  const op = fakeOp("long", adds(1, SLOW), adds(2, SLOW), adds(3, 0));
  let runs = 0;
  for (let result = 0; result !== 3; runs++) {
    const { results, calls } = await tune(device, { folder, seconds: 1e-6 }, op); // time for one candidate
    assert.deepEqual(calls, ["long"]);
    [result] = results;
    assert.ok(runs < 3, "no headway");
  }
  const [{ winners }] = listCaches(folder);
  assert.equal(Object.values(winners)[0].tried, 3);
  assert.deepEqual((await tune(device, { folder }, op)).calls, []);
  await Deno.remove(folder, { recursive: true });
});

Deno.test("a candidate that the device refuses is left out with a note", async () => {
  using device = await openDevice();
  const broken = (call: Call) => [{ ...adds(9, 0)(call)[0], wgsl: "this isn't WGSL" }];
  const unfit = (call: Call) => [{ ...adds(9, 0)(call)[0], workgroups: [1 << 20, 1, 1] as const }];
  const op = fakeOp("risky", adds(1, SLOW), broken, unfit, adds(2, 0));
  const { results, notes } = await tune(device, { folder: undefined }, op);
  assert.deepEqual(results, [2]);
  assert.match(notes[0], /no cache folder/);
  assert.match(notes[1], /^risky \(4096\) f32: candidate 1 is left out: Cannot compile kernel add after 0 rounds/);
  assert.match(notes[2], /candidate 2 is left out/);
  assert.equal(notes.length, 3);
});

Deno.test("tuning leaves variables as they were", async () => {
  using device = await openDevice();
  const op: Op<undefined> = { ...fakeOp("in place", adds(1, SLOW), adds(1, 0)), inPlace: () => ({ 0: 0 }) };
  op.kernels = (call) =>
    [SLOW, 0].map((rounds) => {
      const [dispatch] = adds(1, rounds)(call as Call);
      const wgsl = dispatch.wgsl.replace(/@group.*binding\(1\).*\n/, "").replaceAll("x[id.x]", "y[id.x]");
      return [{ ...dispatch, wgsl, bindings: dispatch.bindings.slice(0, 1) }];
    });
  using store = createStore(device);
  store.allocate("parameter", [{ name: "w", shape: [4096], dtype: "f32" }]);
  store.write("w", new Float32Array(4096).fill(7));
  const graph = new Graph();
  apply(op, [graph.variable("w", [4096])], undefined);
  using tuner = new Tuner(device, { folder: undefined });
  device.chooser = tuner;
  using program = await compile(device, graph, {}, store);
  const { bytes } = device;
  assert.ok(new Float32Array(await store.read("w")).every((value) => value === 7));
  program.run();
  assert.ok(new Float32Array(await store.read("w")).every((value) => value === 8));
  assert.ok(bytes - program.bytes < 6 << 20, `${bytes} bytes stand after tuning`);
});

Deno.test("caches that can't be used or kept are told in one line", async () => {
  using device = await openDevice();
  const folder = await Deno.makeTempDir();
  const op = fakeOp("kept", adds(1, SLOW), adds(2, 0));
  await tune(device, { folder }, op);
  const [{ name }] = [...Deno.readDirSync(folder)];
  const path = join(folder, name);
  const text = await Deno.readTextFile(path);
  const cases: [string, RegExp][] = [
    [text.slice(0, -20), /is ignored: it isn't JSON/],
    ["[]", /is ignored: it isn't a cache of this version/],
    [text.replace('"version": 1', '"version": 2'), /is ignored: it isn't a cache of this version/],
    [text.replace(/"milliseconds": [\d.e-]+/, '"milliseconds": "fast"'), /is ignored: it isn't a cache/],
    [text.replace(device.name, "another adapter"), /is ignored: it belongs to another adapter, driver or Deno/],
    [text.replace(Deno.version.deno, "1.0.0"), /is ignored: it belongs to another adapter, driver or Deno/],
  ];
  for (const [content, message] of cases) {
    await Deno.writeTextFile(path, content);
    const { results, calls, notes } = await tune(device, { folder }, op);
    assert.deepEqual([results, calls, notes.length], [[2], ["kept"], 1], content);
    assert.match(notes[0], message);
    assert.equal(listCaches(folder).length, 1); // it was written anew
  }
  const file = join(folder, "no folder");
  await Deno.writeTextFile(file, "");
  const { results, notes } = await tune(
    device,
    { folder: file, again: true },
    op,
    fakeOp("other", adds(1, 0), adds(2, 0)),
  );
  assert.equal(results[0], 2);
  assert.match(notes.at(-1)!, /tuned kernels can't be kept in .*; they are tuned again next time/);
  assert.equal(notes.filter((line) => line.includes("kept in")).length, 1);
  assert.deepEqual([...Deno.readDirSync(folder)].map(({ name }) => name).filter((name) => name.includes(".tmp-")), []);
  await Deno.remove(folder, { recursive: true });
});
