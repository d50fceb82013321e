/** Differentiation on toy scalar ops, evaluated in plain f64: no GPU. */
import assert from "node:assert/strict";
import { apply, type Call, Graph, isLeaf, type Op, reshape, type Tensor } from "../../../kernels/gpu/graph.ts";
import { differentiate } from "../../../kernels/gpu/grad.ts";
import { schedule } from "../../../kernels/gpu/plan.ts";

const base = {
  infer: ([x]: readonly { shape: readonly number[]; dtype: "f32" }[]) => [x],
  kernels: () => [[]],
  cost: () => ({ flops: 0, bytes: 0 }),
};

const multiplyOp = {
  ...base,
  name: "multiply",
  vjp: ({ inputs: [a, b] }: Call, [grad]: readonly (Tensor | null)[]) => [multiply(grad!, b), multiply(grad!, a)],
} as unknown as Op<undefined>;
const sineOp = {
  ...base,
  name: "sine",
  vjp: ({ inputs: [x] }: Call, [grad]: readonly (Tensor | null)[]) => [multiply(grad!, cosine(x))],
} as unknown as Op<undefined>;
const cosineOp = { ...base, name: "cosine" } as unknown as Op<undefined>;
/** Its gradient rule adds into a running sum by itself. */
const addOp = {
  ...base,
  name: "add",
  vjp: (_: Call, [grad]: readonly (Tensor | null)[], into: readonly (Tensor | null)[]) =>
    into.map((sum) => sum === null ? grad : apply(addInto, [sum, grad!], undefined)[0]),
} as unknown as Op<undefined>;
const addInto = { ...base, name: "addInto", inPlace: () => ({ 0: 0 }) } as unknown as Op<undefined>;

const multiply = (a: Tensor, b: Tensor) => apply(multiplyOp, [a, b], undefined)[0];
const sine = (x: Tensor) => apply(sineOp, [x], undefined)[0];
const cosine = (x: Tensor) => apply(cosineOp, [x], undefined)[0];
const add = (a: Tensor, b: Tensor) => apply(addOp, [a, b], undefined)[0];

const meaning: Record<string, (...x: number[]) => number> = {
  multiply: (a, b) => a * b,
  add: (a, b) => a + b,
  addInto: (a, b) => a + b,
  accumulate: (a, b) => a + b,
  sine: Math.sin,
  cosine: Math.cos,
};

function evaluate(graph: Graph, outputs: readonly Tensor[], leaves: Record<string, number>): number[] {
  const values = new Map<Tensor, number>();
  const valueOf = ({ base }: Tensor) => isLeaf(base.source) ? leaves[base.source.name] : values.get(base)!;
  for (const call of schedule(graph.calls, outputs)) {
    const result = call.op.name === "fill"
      ? (call.attrs as { value: number }).value
      : meaning[call.op.name](...call.inputs.map(valueOf));
    values.set(call.outputs[0], result);
  }
  return outputs.map(valueOf);
}

function close(actual: number, expected: number): void {
  assert.ok(Math.abs(actual - expected) < 1e-9, `${actual} is not ${expected}`);
}

Deno.test("product and chain rules, a value used three times", () => {
  const graph = new Graph();
  const [x, y] = [graph.input("x", [1]), graph.input("y", [1])];
  const loss = add(multiply(x, sine(multiply(x, y))), x);
  const [dx, dy] = differentiate(loss, [x, y]);
  const [vx, vy] = evaluate(graph, [dx, dy], { x: 0.7, y: 1.3 });
  close(vx, Math.sin(0.91) + 0.91 * Math.cos(0.91) + 1);
  close(vy, 0.49 * Math.cos(0.91));
});

Deno.test("the same tensor twice in one call counts twice", () => {
  const graph = new Graph();
  const x = graph.input("x", [1]);
  for (const [loss, expected] of [[multiply(x, x), 1.4], [add(x, x), 2]] as const) {
    const [dx] = differentiate(loss, [x]);
    close(evaluate(graph, [dx], { x: 0.7 })[0], expected);
  }
});

Deno.test("gradients are added into variables, through reshapes", () => {
  const graph = new Graph();
  const [w, sum] = [graph.variable("w", [1]), graph.variable("dw", [1])];
  const loss = multiply(reshape(w, [1, 1]), reshape(sine(w), [1, 1]));
  const [dw] = differentiate(loss, [w], [sum]);
  close(evaluate(graph, [dw], { w: 0.5, dw: 10 })[0], 10 + Math.sin(0.5) + 0.5 * Math.cos(0.5));
  assert.deepEqual(dw.shape, [1]);
});

Deno.test("seeds carry gradients from outside", () => {
  const graph = new Graph();
  const [x, g, h] = ["x", "g", "h"].map((name) => graph.input(name, [1]));
  const [a, b] = [sine(x), multiply(x, x)];
  const [dx] = differentiate([{ tensor: a, gradient: g }, { tensor: b, gradient: h }], [x]);
  close(evaluate(graph, [dx], { x: 0.4, g: 3, h: 5 })[0], 3 * Math.cos(0.4) + 5 * 0.8);
});

Deno.test("a recompute region is made again once, and gives the same gradients", () => {
  const build = (recompute: boolean) => {
    const graph = new Graph();
    const x = graph.input("x", [1]);
    const body = (y: Tensor) => sine(multiply(y, sine(y)));
    const inner = recompute ? graph.region(() => body(x)) : body(x);
    const loss = recompute ? graph.region(() => body(inner)) : body(inner);
    const forward = graph.calls.length;
    const [dx] = differentiate(loss, [x]);
    const replayed = graph.calls.slice(forward).filter((call) => call.op.name === "sine").length;
    return { replayed, values: evaluate(graph, [dx, loss], { x: 0.9 }) };
  };
  const [kept, again] = [build(false), build(true)];
  assert.deepEqual(again.values, kept.values);
  assert.deepEqual([kept.replayed, again.replayed], [0, 4]);
});

Deno.test("what has no gradient is an error that names it", () => {
  const graph = new Graph();
  const [x, y] = [graph.input("x", [1]), graph.variable("y", [1])];
  assert.throws(() => differentiate(cosine(x), [x]), /Cannot differentiate cosine: it has no gradient rule/);
  assert.throws(() => differentiate(sine(x), [y]), /with respect to y: no gradient reaches it/);
  assert.throws(() => differentiate(graph.input("z", [2]), [x]), /a loss has one element/);
});
