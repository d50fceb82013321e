/** Scheduling and planning on toy ops: no GPU. */
import assert from "node:assert/strict";
import { apply, type Call, Graph, type Op, scratch, type Tensor } from "../../../kernels/gpu/graph.ts";
import { plan, schedule, type Step, variableOf } from "../../../kernels/gpu/plan.ts";
import { accumulate } from "../../../kernels/gpu/primitives.ts";

const unary: Op<undefined> = {
  name: "unary",
  infer: ([x]) => [x],
  kernels: () => [[]],
  cost: () => ({ flops: 0, bytes: 0 }),
};

const binary: Op<undefined> = { ...unary, name: "binary" };

const f = (x: Tensor) => apply(unary, [x], undefined)[0];
const join = (a: Tensor, b: Tensor) => apply(binary, [a, b], undefined)[0];
const steps = (calls: readonly Call[]): Step[] => calls.map((call) => ({ call, dispatches: [] }));

Deno.test("a chain of values needs two buffers", () => {
  const graph = new Graph();
  let x = graph.input("x", [100]);
  for (let i = 0; i < 10; i++) x = f(x);
  const calls = schedule(graph.calls, [x]);
  const planned = plan(steps(calls), [x]);
  assert.equal(calls.length, 10);
  assert.deepEqual(planned.slots, [400, 400]);
  assert.deepEqual(planned.unshared, { bytes: 4000, values: 10 });
  assert.equal(planned.toString(), "0.00 MB → 0.00 MB, 10 values → 2 buffers");
});

Deno.test("values that live together never share a slot", () => {
  const graph = new Graph();
  const values: Tensor[] = [];
  let seed = 7;
  const random = (n: number) => (seed = Math.imul(seed, 1103515245) + 12345 >>> 0) % n;
  values.push(graph.input("x", [8]));
  for (let i = 0; i < 200; i++) values.push(join(values[random(values.length)], values[random(values.length)]));
  const outputs = [values[150], values[200]];
  const calls = schedule(graph.calls, outputs);
  const planned = plan(steps(calls), outputs);
  const holder = new Map<number, Tensor>();
  for (const call of calls) {
    for (const input of call.inputs) {
      const place = planned.place(input);
      if ("slot" in place) assert.equal(holder.get(place.slot), input, "an input was overwritten before it was read");
    }
    const place = planned.place(call.outputs[0]);
    assert.ok("slot" in place);
    for (const input of call.inputs) assert.notDeepEqual(planned.place(input), place);
    holder.set(place.slot, call.outputs[0]);
  }
  for (const output of outputs) assert.equal(holder.get((planned.place(output) as { slot: number }).slot), output);
  assert.ok(planned.slots.length < calls.length / 2);
});

Deno.test("what no output and no variable needs is dropped", () => {
  const graph = new Graph();
  const x = graph.input("x", [4]);
  const used = f(x);
  f(f(x));
  assert.deepEqual(schedule(graph.calls, [used]).map((call) => call.outputs[0]), [used]);
});

Deno.test("a write to a variable is kept, and comes after every reader of the old value", () => {
  const graph = new Graph();
  const variable = graph.variable("v", [4]);
  const written = accumulate(variable, graph.input("x", [4]));
  const read = f(variable);
  const order = schedule(graph.calls, [read]).map((call) => call.outputs[0]);
  assert.deepEqual(order, [read, written]);
  assert.equal(variableOf(accumulate(written, read)), variable);
});

Deno.test("an overwrite that its own reader needs is refused", () => {
  const graph = new Graph();
  const variable = graph.variable("v", [4]);
  const written = accumulate(variable, graph.input("x", [4]));
  const both = join(written, variable);
  assert.throws(() => schedule(graph.calls, [both]), /Cannot order accumulate: it overwrites a variable/);
});

Deno.test("in place takes the memory of a dying value, and copies one that lives on", () => {
  const dying = new Graph();
  const a = f(dying.input("x", [4]));
  const sum = accumulate(a, f(dying.input("y", [4])));
  const plain = plan(steps(schedule(dying.calls, [sum])), [sum]);
  assert.deepEqual(plain.place(a), plain.place(sum));
  assert.equal(plain.copies.size, 0);

  const living = new Graph();
  const b = f(living.input("x", [4]));
  const more = accumulate(b, f(living.input("y", [4])));
  const late = f(b);
  const copied = plan(steps(schedule(living.calls, [more, late])), [more, late]);
  assert.notDeepEqual(copied.place(b), copied.place(more));
  assert.deepEqual([...copied.copies.values()], [[{ from: b, to: more }]]);
});

Deno.test("scratch lives during its call alone", () => {
  const graph = new Graph();
  const y = f(graph.input("x", [4]));
  const work = scratch([1000]);
  const dispatch = {
    label: "",
    wgsl: "",
    workgroups: [1, 1, 1] as const,
    bindings: [{ tensor: work, access: "read" as const }],
  };
  const planned = plan([{ call: graph.calls[0], dispatches: [dispatch] }], [y]);
  assert.deepEqual(planned.slots, [4000, 16]);
  assert.deepEqual(planned.place(work), { slot: 0 });
});
