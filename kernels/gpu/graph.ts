/**
 * The graph: tensors, operations and the calls that join them. It knows no memory, no GPU and no particular operation.
 *
 * Refusals, so that what stands here stays small:
 * 1. No eager and no lazy tensor: a graph is built by running the model function once.
 * 2. No automatic fusion: a fused kernel is an op someone wrote, measured, and tested against its parts.
 * 3. No op enum, no central table, no pass that knows an op's name.
 * 4. Shapes are static. Another shape is another program; row counts reach shaders as uniform data, never as shader text.
 * 5. Tensors are dense and row-major. Reshape is free; a transpose is a matmul flag or a kernel's own indexing.
 * 6. No number that changes by step in WGSL or attrs: what changes is a tensor.
 * 7. Host collectives happen between programs, never inside a graph.
 */

/** Element formats. bf16 and f16 are packed two a u32, i8 four, i4 eight; a packed row is padded to whole words. */
export type DType = "f32" | "f16" | "bf16" | "i8" | "i4" | "u32" | "i32";

export interface TensorType {
  readonly shape: readonly number[];
  readonly dtype: DType;
}

/** A value in a graph. It has a type and a source; it has no memory until a plan gives it some. */
export interface Tensor extends TensorType {
  readonly id: number;
  readonly graph: Graph;
  readonly source: Call | Leaf;
  /** The tensor whose memory this one shows under another shape; the tensor itself where it is no reshape. */
  readonly base: Tensor;
}

/** Data from outside: an input is written before each run, a variable lives in the store and outlives the program. */
export interface Leaf {
  readonly kind: "input" | "variable";
  readonly name: string;
}

/** Memory a call needs only while it runs: K-split partials, a chunk of logits. Its identity is the object. */
export interface Scratch extends TensorType {
  readonly kind: "scratch";
}

export interface Call<A = unknown> {
  readonly kind: "call";
  readonly id: number;
  readonly op: Op<A>;
  readonly inputs: readonly Tensor[];
  readonly outputs: readonly Tensor[];
  readonly attrs: A;
  /** Calls of one region are computed again in the backward pass instead of being kept. */
  readonly region: number | null;
}

/** lavapipe ends an invocation's loops after 65,535 iterations in all, some of which no count of ours sees (kernels/LOG.md). */
export const CPU_LOOP_ITERATIONS = 50_000;

/** What an op may know of the adapter when it offers kernels; a plain record, so that tests need no GPU. */
export interface Capabilities {
  /** A driver that runs shaders on the CPU (lavapipe, SwiftShader): loads cost more than arithmetic there. */
  readonly cpu: boolean;
  /** Lanes of a subgroup where subgroups are granted and of one fixed size, else 0. */
  readonly subgroupSize: number;
  readonly f16: boolean;
  /** Loop iterations one invocation may make in all. CPU drivers end loops past a bound and say nothing; else Infinity. */
  readonly loopIterations: number;
  readonly limits: {
    readonly maxStorageBufferBindingSize: number;
    readonly maxBufferSize: number;
    readonly minStorageBufferOffsetAlignment: number;
    readonly minUniformBufferOffsetAlignment: number;
    readonly maxComputeWorkgroupStorageSize: number;
    readonly maxComputeInvocationsPerWorkgroup: number;
    readonly maxComputeWorkgroupSizeX: number;
    readonly maxComputeWorkgroupsPerDimension: number;
    readonly maxStorageBuffersPerShaderStage: number;
    readonly maxTextureDimension2D: number;
  };
}

/**
 * A read-only texture that the program copies from a tensor before the dispatch: a texel holds 16 bytes of a row, four f32 or
 * as many packed elements as four words have.
 */
export interface TextureView {
  readonly texture: "rgba32float" | "rgba32uint";
  /** Elements, of the tensor's format, of one texture row's source row; their bytes must be a multiple of 256. */
  readonly rowLength: number;
  /** First and one past the last source row to copy. Default: all. */
  readonly rows?: readonly [from: number, to: number];
  /** First and one past the last element of each source row to copy, in whole texels. Default: all. */
  readonly columns?: readonly [from: number, to: number];
}

/** How a kernel sees a tensor: whole, or by rows of its first dimension so that nothing passes the binding limit. */
export interface Binding {
  readonly tensor: Tensor | Scratch;
  readonly access: "read" | "read_write";
  /** Rows of the first dimension; the offset in bytes must be a multiple of minStorageBufferOffsetAlignment. */
  readonly rows?: readonly [from: number, to: number];
  readonly as?: "buffer" | TextureView;
}

/** One launch of a WGSL entry point named `main`. Binding i is `@group(0) @binding(i)`; uniforms follow the last one. */
export interface Dispatch {
  readonly label: string;
  readonly wgsl: string;
  readonly workgroups: readonly [number, number, number];
  readonly bindings: readonly Binding[];
  /** u32 values of a uniform struct bound after the last binding: sizes that shape a grid, never the shader text. */
  readonly uniforms?: readonly number[];
}

/** Everything known about one operation. */
export interface Op<A = unknown> {
  readonly name: string;
  /** Types of the outputs. Throws RangeError naming the op and the shapes. */
  infer(inputs: readonly TensorType[], attrs: A): readonly TensorType[];
  /** Candidate kernels, the best guess for this adapter first; every one is right wherever it is offered. */
  kernels(call: Call<A>, device: Capabilities): readonly (readonly Dispatch[])[];
  cost(call: Call<A>): { readonly flops: number; readonly bytes: number };
  /**
   * Gradients of the inputs, null where there is none. `grads[i]` is null where output i reached no loss. `into[i]`, where
   * given, is a running sum: an op that can, adds in place and returns the new value; else differentiate() adds.
   */
  vjp?(
    call: Call<A>,
    grads: readonly (Tensor | null)[],
    into: readonly (Tensor | null)[],
  ): readonly (Tensor | null)[];
  /** Output → the input whose memory it overwrites. */
  inPlace?(call: Call<A>): Readonly<Record<number, number>>;
  /** Data by input that make a measured run like a real one, where random numbers and zeros for integers would not. */
  examples?(call: Call<A>): Readonly<Record<number, Uint32Array | Int32Array | Float32Array>>;
}

/** A call and the kernels it could run by. */
export interface Offer {
  readonly call: Call;
  readonly candidates: readonly (readonly Dispatch[])[];
  /** Whether textures of variables stay from run to run, so that filling them costs nothing. */
  readonly keep?: boolean;
}

/** Picks one candidate of each offer, by index. */
export interface Chooser {
  choose(offers: readonly Offer[]): Promise<readonly number[]>;
}

const WORD_BITS: Readonly<Record<DType, number>> = { f32: 32, u32: 32, i32: 32, f16: 16, bf16: 16, i8: 8, i4: 4 };

/** Elements of a tensor. */
export function count(type: TensorType): number {
  return type.shape.reduce((product, size) => product * size, 1);
}

/** Bytes of a tensor; a packed row (the last dimension) is padded to whole u32 words. */
export function byteLength(type: TensorType): number {
  const columns = type.shape.at(-1) ?? 1;
  const rows = columns === 0 ? 0 : count(type) / columns;
  return rows * Math.ceil(columns * WORD_BITS[type.dtype] / 32) * 4;
}

/** Whether a value comes from outside of the graph. */
export function isLeaf(source: Call | Leaf): source is Leaf {
  return source.kind !== "call";
}

/** `(2, 3) f32`, for errors and listings. */
export function formatType(type: TensorType): string {
  return `(${type.shape.join(", ")}) ${type.dtype}`;
}

/** Builds and holds one graph. Calls stand in the order they were made, which is a topological order. */
export class Graph {
  readonly calls: Call[] = [];
  /** Calls that stood when the graph was differentiated first: the forward pass. */
  forwardCalls: number | null = null;
  readonly #leaves = new Map<string, Tensor>();
  #nextTensor = 0;
  #nextRegion = 0;
  #region: number | null = null;

  /** Data written before each run, by name. */
  input(name: string, shape: readonly number[], dtype: DType = "f32"): Tensor {
    return this.#leaf({ kind: "input", name }, { shape, dtype });
  }

  /** Memory of the store, by name. */
  variable(name: string, shape: readonly number[], dtype: DType = "f32"): Tensor {
    return this.#leaf({ kind: "variable", name }, { shape, dtype });
  }

  leaves(): readonly Tensor[] {
    return [...this.#leaves.values()];
  }

  /** Runs `body`; the calls it makes are recomputed in the backward pass instead of being kept. Regions don't nest. */
  region<T>(body: () => T): T {
    if (this.#region !== null) throw new Error("Cannot open a recompute region inside another");
    this.#region = this.#nextRegion++;
    try {
      return body();
    } finally {
      this.#region = null;
    }
  }

  apply<A>(op: Op<A>, inputs: readonly Tensor[], attrs: A): readonly Tensor[] {
    for (const input of inputs) {
      if (input.graph !== this) throw new RangeError(`Cannot apply ${op.name}: an input belongs to another graph`);
    }
    const types = op.infer(inputs, attrs);
    const outputs: Tensor[] = [];
    const call: Call<A> = { kind: "call", id: this.calls.length, op, inputs, outputs, attrs, region: this.#region };
    for (const type of types) outputs.push(this.#tensor(type, call));
    this.calls.push(call as Call);
    return outputs;
  }

  /** The same memory under another shape. Throws RangeError where the element counts differ. */
  reshape(tensor: Tensor, shape: readonly number[]): Tensor {
    if (count({ shape, dtype: tensor.dtype }) !== count(tensor)) {
      throw new RangeError(`Cannot reshape (${tensor.shape.join(", ")}) to (${shape.join(", ")}): counts differ`);
    }
    return { ...tensor, id: this.#nextTensor++, shape: [...shape] };
  }

  #leaf(leaf: Leaf, type: TensorType): Tensor {
    const known = this.#leaves.get(leaf.name);
    if (known === undefined) {
      const tensor = this.#tensor(type, leaf);
      this.#leaves.set(leaf.name, tensor);
      return tensor;
    }
    const same = known.dtype === type.dtype && known.shape.join() === type.shape.join() &&
      (known.source as Leaf).kind === leaf.kind;
    if (!same) {
      throw new RangeError(`Cannot declare ${leaf.kind} ${leaf.name} ${formatType(type)}: it is ${formatType(known)}`);
    }
    return known;
  }

  #tensor(type: TensorType, source: Call | Leaf): Tensor {
    const tensor = { id: this.#nextTensor++, graph: this, source, shape: [...type.shape], dtype: type.dtype };
    return Object.assign(tensor, { base: tensor as unknown as Tensor });
  }

  /** One line a call: outputs = op(inputs) attrs. */
  toString(): string {
    return this.calls.map(formatCall).join("\n");
  }
}

/** Applies an op in the graph of its first input. */
export function apply<A>(op: Op<A>, inputs: readonly Tensor[], attrs: A): readonly Tensor[] {
  return inputs[0].graph.apply(op, inputs, attrs);
}

/** The same memory under another shape; free. */
export function reshape(tensor: Tensor, shape: readonly number[]): Tensor {
  return tensor.graph.reshape(tensor, shape);
}

/** A scratch tensor for one call's dispatches. */
export function scratch(shape: readonly number[], dtype: DType = "f32"): Scratch {
  return { kind: "scratch", shape, dtype };
}

/** Whether a binding's tensor is memory of one call alone. */
export function isScratch(tensor: Tensor | Scratch): tensor is Scratch {
  return "kind" in tensor && tensor.kind === "scratch";
}

function formatTensor(tensor: Tensor): string {
  const source = tensor.source;
  return isLeaf(source) ? source.name : `%${tensor.base.id}`;
}

function formatCall(call: Call): string {
  const outputs = call.outputs.map((output) => `%${output.id} ${formatType(output)}`).join(", ");
  const inputs = call.inputs.map(formatTensor).join(", ");
  const attrs = call.attrs === undefined ? "" : ` ${JSON.stringify(call.attrs)}`;
  const region = call.region === null ? "" : ` [region ${call.region}]`;
  return `${outputs} = ${call.op.name}(${inputs})${attrs}${region}`;
}
