/**
 * One call on its own: a tiny program of it for each candidate, with inputs of the same types, so that candidates can be run
 * and compared. It knows no op and no clock.
 */
import type { Command } from "./assemble.ts";
import { fingerprint } from "./choices.ts";
import type { Device } from "./device.ts";
import { byteLength, type Call, type DType, Graph, type Offer, reshape, type Tensor } from "./graph.ts";
import { variableOf } from "./plan.ts";
import { compile } from "./program.ts";
import { createStore, type Store } from "./store.ts";

/** A candidate ready to run. */
export interface Trial extends Disposable {
  /** A run's commands; kept textures aren't filled by them, and hold zeros. */
  readonly commands: readonly Command[];
  readonly label: string;
}

/** A call taken out of its graph; disposing of it frees its stored inputs. */
export class Isolated implements Disposable {
  readonly #graph = new Graph();
  readonly #call: Call;
  readonly #store: Store;
  /** Inputs as tensors of the graph, one for each tensor of the call. */
  readonly #leaves = new Map<Tensor, { name: string; leaf: Tensor; index: number; stored: boolean }>();

  constructor(readonly device: Device, readonly offer: Offer) {
    const { op, inputs, attrs } = offer.call;
    // What is written in place must be a variable, or the program would copy it first.
    const overwritten = new Set(Object.values(op.inPlace?.(offer.call) ?? {}));
    inputs.forEach(({ base }, index) => {
      if (this.#leaves.has(base)) return;
      const name = `input ${index}`;
      const stored = variableOf(base) !== null || inputs.some((other, i) => other.base === base && overwritten.has(i));
      const leaf = stored
        ? this.#graph.variable(name, base.shape, base.dtype)
        : this.#graph.input(name, base.shape, base.dtype);
      this.#leaves.set(base, { name, leaf, index, stored });
    });
    const fresh = inputs.map((input) => reshape(this.#leaves.get(input.base)!.leaf, input.shape));
    this.#call = this.#graph.apply(op, fresh, attrs)[0].source as Call;
    this.#store = createStore(device);
    const stored = [...this.#leaves.values()].filter(({ stored }) => stored);
    this.#store.allocate("inputs", stored.map(({ name, leaf: { shape, dtype } }) => ({ name, shape, dtype })));
    for (const { name, index } of stored) this.#store.write(name, this.#data(index));
  }

  /** Makes a candidate ready. @throws Error where it isn't offered here, or the device refuses it. */
  async open(index: number): Promise<Trial> {
    const { device, offer: { call, candidates, keep } } = this;
    const wanted = fingerprint(call, candidates[index]);
    const outputs = Object.fromEntries(this.#call.outputs.map((output, i) => [`output ${i}`, output]));
    const program = await compile(device, this.#graph, outputs, this.#store, {
      choose(call, offered) {
        const index = offered.findIndex((candidate) => fingerprint(call, candidate) === wanted);
        if (index < 0) throw new Error("it isn't offered for the call alone");
        return index;
      },
      keep,
    });
    for (const { name, index, stored } of this.#leaves.values()) {
      if (!stored) program.write({ [name]: this.#data(index) });
    }
    return {
      commands: program.commands,
      label: labelOf(candidates[index]),
      [Symbol.dispose]: () => program[Symbol.dispose](),
    };
  }

  #data(index: number): ArrayBufferView {
    const { call } = this.offer;
    const { base } = call.inputs[index];
    return call.op.examples?.(call)[index] ?? exampleOf(base.dtype, byteLength(base));
  }

  [Symbol.dispose](): void {
    this.#store[Symbol.dispose]();
  }
}

/** Distinct labels of a candidate's dispatches. */
export function labelOf(candidate: Offer["candidates"][number]): string {
  return [...new Set(candidate.map(({ label }) => label))].join(", ");
}

/** Keeps sign and fraction of random words and sets the exponent: finite numbers below 1 in magnitude, none denormal. */
const FLOAT_BITS: Partial<Record<DType, { readonly keep: number; readonly set: number }>> = {
  f32: { keep: 0x807fffff, set: 0x3f000000 },
  bf16: { keep: 0x807f807f, set: 0x3f003f00 },
  f16: { keep: 0x83ff83ff, set: 0x38003800 },
};

/** Random finite numbers, random bits of packed integers, zeros for u32 and i32. */
function exampleOf(dtype: DType, bytes: number): Uint32Array {
  const words = new Uint32Array(bytes / 4);
  if (dtype === "u32" || dtype === "i32") return words;
  const { keep, set } = FLOAT_BITS[dtype] ?? { keep: 0xffffffff, set: 0 };
  let state = 1;
  for (let i = 0; i < words.length; i++) {
    state = Math.imul(state, 1664525) + 1013904223;
    // The low bits of such a generator hardly vary: the halves of two states make a word.
    const high = state >>> 16;
    state = Math.imul(state, 1664525) + 1013904223;
    words[i] = (high | (state & 0xffff0000)) & keep | set;
  }
  return words;
}
