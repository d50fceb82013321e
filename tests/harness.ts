/**
 * Checks an op against its f64 reference: every candidate kernel forward, and every gradient by finite differences of the
 * reference, once returned and once added into a running sum. It knows no particular op.
 */
import { type Device, openDevice } from "../kernels/gpu/device.ts";
import { count, type DType, Graph, type Tensor } from "../kernels/gpu/graph.ts";
import { differentiate } from "../kernels/gpu/grad.ts";
import { compile } from "../kernels/gpu/program.ts";
import { createStore } from "../kernels/gpu/store.ts";
import { assertClose, type Tolerance } from "./close.ts";

let opened: Promise<Device> | null = null;

/** One device for a test file; it ends with the process. */
export function testDevice(): Promise<Device> {
  return opened ??= openDevice();
}

export interface OpInput {
  readonly shape: readonly number[];
  readonly data: Float32Array | Uint32Array | Int32Array;
  /** Whether to check the gradient. Default: where the data are f32. */
  readonly grad?: boolean;
}

export interface OpCheck extends Partial<Tolerance> {
  readonly build: (graph: Graph, inputs: Tensor[]) => Tensor | readonly Tensor[];
  /** The same outputs from f64 inputs, flat. */
  readonly reference: (inputs: Float64Array[]) => Float64Array | readonly Float64Array[];
  readonly inputs: readonly OpInput[];
  /** Elements of each input whose gradient is checked. Default 24. */
  readonly samples?: number;
  /** Allowance for gradients. Default: that of the values. */
  readonly gradients?: Tolerance;
}

/** Runs an op forward and backward with each of its candidates. Returns how many candidates there were. */
export async function checkOp(check: OpCheck): Promise<number> {
  const device = await testDevice();
  const tolerance = { atol: check.atol ?? 1e-5, rtol: check.rtol ?? 1e-5 };
  const inputs = check.inputs.map(({ data }) => Float64Array.from(data));
  const expected = list(check.reference(inputs));
  const cotangents = expected.map((values, i) => Float32Array.from(noise(values.length, 77 + i)));
  let candidates = 1;
  for (let choice = 0; choice < candidates; choice++) {
    for (const running of [false, true]) {
      const result = await runOp(device, check, cotangents, choice, running);
      candidates = Math.max(candidates, result.candidates);
      const label = `candidate ${choice}`;
      expected.forEach((values, i) => assertClose(result.values[i], values, tolerance, `${label}, output ${i}`));
      result.gradients.forEach((gradient, i) => {
        if (gradient === null) return;
        checkGradient(check, inputs, cotangents, gradient, i, check.gradients ?? tolerance, `${label}, gradient ${i}`);
      });
    }
  }
  return candidates;
}

interface OpResult {
  readonly candidates: number;
  readonly values: Float32Array[];
  readonly gradients: (Float32Array | null)[];
}

async function runOp(
  device: Device,
  check: OpCheck,
  cotangents: readonly Float32Array[],
  choice: number,
  running: boolean,
): Promise<OpResult> {
  const graph = new Graph();
  const data: Record<string, ArrayBufferView> = {};
  const feed = (name: string, shape: readonly number[], values: ArrayBufferView, dtype: DType) => {
    data[name] = values;
    return graph.input(name, shape, dtype);
  };
  const tensors = check.inputs.map(({ shape, data }, i) => feed(`x${i}`, shape, data, dtypeOf(data)));
  const outputs = list(check.build(graph, tensors));
  const wrt = tensors.filter((_, i) => wantsGradient(check.inputs[i]));
  const seeds = outputs.map((tensor, i) => ({ tensor, gradient: feed(`dy${i}`, tensor.shape, cotangents[i], "f32") }));
  const sums = wrt.map((tensor, i) => noise(count(tensor), 990 + i));
  const into = running ? wrt.map((tensor, i) => feed(`sum${i}`, tensor.shape, Float32Array.from(sums[i]), "f32")) : [];
  const gradients = wrt.length > 0 ? differentiate(seeds, wrt, into) : [];
  const named = Object.fromEntries([...outputs, ...gradients].map((tensor, i) => [`out${i}`, tensor]));
  let candidates = 1;
  using store = createStore(device);
  using program = await compile(device, graph, named, store, {
    choose(_, offered) {
      candidates = Math.max(candidates, offered.length);
      return Math.min(choice, offered.length - 1);
    },
  });
  program.run(data);
  const read = (await program.read(...Object.keys(named))).map((buffer) => new Float32Array(buffer));
  const values = read.slice(0, outputs.length);
  let next = outputs.length;
  const byInput = tensors.map((tensor) => {
    const index = wrt.indexOf(tensor);
    if (index < 0) return null;
    const gradient = read[next++];
    return running ? gradient.map((value, i) => value - Math.fround(sums[index][i])) : gradient;
  });
  return { candidates, values, gradients: byInput };
}

/** Compares sampled elements with central differences of the reference. */
function checkGradient(
  check: OpCheck,
  inputs: readonly Float64Array[],
  cotangents: readonly Float32Array[],
  gradient: Float32Array,
  index: number,
  tolerance: Tolerance,
  label: string,
): void {
  const projected = (element: number, delta: number) => {
    const moved = inputs.map((values) => values.slice());
    moved[index][element] += delta;
    const outputs = list(check.reference(moved));
    return outputs.reduce((sum, values, i) => sum + dot(values, cotangents[i]), 0);
  };
  const samples = Math.min(check.samples ?? 24, gradient.length);
  const elements = Array.from({ length: samples }, (_, i) => Math.floor(i * gradient.length / samples));
  const differences = elements.map((element) => {
    const step = 1e-5 * Math.max(1, Math.abs(inputs[index][element]));
    return (projected(element, step) - projected(element, -step)) / (2 * step);
  });
  assertClose(elements.map((element) => gradient[element]), differences, tolerance, label);
}

function wantsGradient(input: OpInput): boolean {
  return input.grad ?? input.data instanceof Float32Array;
}

function dtypeOf(data: OpInput["data"]): DType {
  return data instanceof Float32Array ? "f32" : data instanceof Uint32Array ? "u32" : "i32";
}

function dot(a: Float64Array, b: Float32Array): number {
  return a.reduce((sum, value, i) => sum + value * b[i], 0);
}

function list<T>(value: T | readonly T[]): readonly T[] {
  return Array.isArray(value) ? value : [value as T];
}

/** Deterministic numbers in (-1, 1). */
export function noise(length: number, seed: number): Float64Array {
  let state = seed * 2654435761 >>> 0;
  return Float64Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state >>> 8) / 0x800000 - 1;
  });
}

/** Deterministic f32 data in (-1, 1), or scaled. */
export function randomF32(length: number, seed: number, scale = 1): Float32Array {
  return Float32Array.from(noise(length, seed), (value) => value * scale);
}
