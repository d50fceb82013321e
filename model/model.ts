/**
 * A model on a device: parameters in a store, and the programs that turn tokens into logits, losses and gradients. It
 * knows no optimizer, no server and no text.
 */
import type { FloatType } from "../kernels/cast.ts";
import type { Device } from "../kernels/gpu/device.ts";
import { count, Graph, type Tensor } from "../kernels/gpu/graph.ts";
import { compile, type Program } from "../kernels/gpu/program.ts";
import { createStore, type Store } from "../kernels/gpu/store.ts";
import { expand, quantize } from "../kernels/quantize.ts";
import { denseBatch, denseRows } from "./batch.ts";
import { writeFolder } from "./checkpoint.ts";
import { type Architecture, type Context, denseContext } from "./context.ts";
import { UserError } from "./errors.ts";
import type { GenerationConfig } from "./generation_config.ts";
import { PREFIX } from "./gpt2.ts";
import type { Gpt2Config } from "./gpt2_config.ts";
import { objective } from "./objective.ts";
import { logits } from "./linear.ts";
import { packRows, unpackRows } from "./packed_rows.ts";
import {
  createScope,
  entriesOf,
  type Formats,
  integerFormat,
  isFloatFormat,
  isTransposed,
  type Parameter,
  scalesName,
  type Scope,
  type WeightFormat,
} from "./scope.ts";
import { shapeOf } from "./shape.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** Bytes of logits computed at a time. */
const LOGITS_BYTES = 32 << 20;

/** Elements of new weights made, and of parameters read, at a time: 16 MB. */
export const PIECE = 4 << 20;

/** Programs kept for batches of other sizes. */
const PROGRAMS = 4;

export interface ModelOptions {
  /** Whether checkpoint keys go without `transformer.`. */
  readonly bare?: boolean;
  /** Saved with the model. */
  readonly tokenizer?: Tokenizer;
  /** Saved with the model. Default: only the tokens that begin and end a text. */
  readonly generation?: GenerationConfig;
  /** Format of the weights in memory. Default: f32. */
  readonly weights?: WeightFormat;
  /** Whether weights are laid out for decoding; it gives no gradients then. */
  readonly serving?: boolean;
}

/** A GPT-2 on a device. Make one with `loadModel` or `createModel`; until it is disposed it holds GPU memory. */
export class Model implements Disposable {
  readonly architecture: Architecture;
  readonly store: Store;
  /** Parameters in the order the model uses them. */
  readonly declared: readonly Parameter[];
  readonly formats: Formats;
  readonly #programs = new Map<string, Program>();

  constructor(
    readonly device: Device,
    readonly config: Gpt2Config,
    readonly options: ModelOptions = {},
  ) {
    ({ architecture: this.architecture, declared: this.declared } = shapeOf(config));
    const { weights = "f32" } = options;
    this.formats = { weights, serving: options.serving || !isFloatFormat(weights) };
    this.store = createStore(device);
    this.store.allocate("parameter", this.declared.flatMap((parameter) => entriesOf(parameter, this.formats)));
  }

  /** How many numbers the model has learned or will learn; padding doesn't count. */
  get parameterCount(): number {
    return this.declared.reduce((sum, { shape }) => sum + count({ shape, dtype: "f32" }), 0);
  }

  /** Where the architecture finds the model's parameters as they stand in memory. */
  scope(graph: Graph): Scope {
    return createScope(graph, this.formats);
  }

  /** A parameter's key in checkpoints of this model. */
  key(name: string): string {
    return this.options.bare ? name.slice(PREFIX.length + 1) : name;
  }

  /**
   * Logits of rows of tokens, each row one document at positions 0…T-1.
   *
   * @param tokens (B, T) ids.
   * @returns (B, T, V) f32.
   * @throws RangeError for rows of unequal length, a T past the context or an id ≥ V.
   */
  async logits(tokens: readonly (readonly number[])[]): Promise<Float32Array> {
    const inputs = denseRows(this.config, tokens);
    const rows = inputs.tokens.length;
    const { n_embd: C, vocab_size: V } = this.config;
    const body = await this.#program(`hidden ${rows}`, (graph) => {
      const hidden = this.architecture.hidden(this.scope(graph), this.#dense(graph, rows));
      return { hidden };
    });
    body.run({ ...inputs });
    const hidden = new Float32Array((await body.read("hidden"))[0]);
    const chunk = Math.max(1, Math.min(rows, Math.floor(LOGITS_BYTES / (4 * V))));
    const head = await this.#program(`head ${chunk}`, (graph) => {
      const table = this.architecture.unembed(this.scope(graph));
      return { logits: logits(graph.input("hidden", [chunk, C]), table, this.formats) };
    });
    const result = new Float32Array(rows * V);
    const part = new Float32Array(chunk * C);
    for (let from = 0; from < rows; from += chunk) {
      const taken = Math.min(chunk, rows - from);
      part.fill(0).set(hidden.subarray(from * C, (from + taken) * C));
      head.run({ hidden: part });
      const padded = new Float32Array((await head.read("logits"))[0]);
      const width = padded.length / chunk;
      for (let row = 0; row < taken; row++) {
        result.set(padded.subarray(row * width, row * width + V), (from + row) * V);
      }
    }
    return result;
  }

  /**
   * Mean cross-entropy over targets other than -100, and its gradients, without dropout.
   *
   * @param tokens (B, T) ids, each row one document.
   * @param targets (B, T) ids or -100.
   * @returns the loss in nats, and gradients by the checkpoint's keys, in its layouts.
   * @throws RangeError for shapes that differ, a T past the context or an id ≥ V.
   */
  async lossAndGradients(
    tokens: readonly (readonly number[])[],
    targets: readonly (readonly number[])[],
  ): Promise<{ loss: number; gradients: Map<string, Float32Array> }> {
    if (this.formats.serving) {
      throw new UserError("Cannot compute gradients of a model loaded for serving: load it as f32, bf16 or f16", 2);
    }
    const inputs = denseBatch(this.config, tokens, targets);
    const rows = inputs.tokens.length;
    const program = await this.#program(`gradients ${rows}`, (graph) => {
      const { loss, gradients } = objective(
        graph,
        this.architecture,
        this.#dense(graph, rows),
        this.config.vocab_size,
        { formats: this.formats },
      );
      return { loss, ...Object.fromEntries(this.declared.map(({ name }, i) => [name, gradients[i]])) };
    });
    const { validTargets, ...arrays } = inputs;
    program.run({ ...arrays, scale: new Float32Array([1 / Math.max(1, validTargets)]) });
    const [loss, ...gradients] = await program.read("loss", ...this.declared.map(({ name }) => name));
    const named = this.declared.map((parameter, i): [string, Float32Array] => [
      this.key(parameter.name),
      unpadded(parameter, new Float32Array(gradients[i])),
    ]);
    return { loss: new Float32Array(loss)[0], gradients: new Map(named) };
  }

  /** All parameters by the checkpoint's keys, unpadded. */
  async parameters(): Promise<Map<string, Float32Array>> {
    const result = new Map<string, Float32Array>();
    for (const parameter of this.declared) result.set(this.key(parameter.name), await this.read(parameter));
    return result;
  }

  /** One parameter, or with `prefix` its gradient or moment, unpadded, as f32. */
  async read(parameter: Parameter, prefix = ""): Promise<Float32Array> {
    const name = prefix + parameter.name;
    const { shape } = parameter;
    const format = integerFormat(parameter, this.formats);
    const transposed = isTransposed(parameter, this.formats);
    const standing = transposed ? shape.toReversed() : shape;
    const buffer = await this.store.read(name);
    if (format !== undefined) {
      const scales = new Float32Array(await this.store.read(scalesName(name)));
      const values = expand({ values: new Uint32Array(buffer), scales }, standing, format, "rows");
      return transposed ? transpose(values, standing) : values;
    }
    const values = unpackRows(buffer, standing.at(-1)!, this.store.get(name)!.dtype as FloatType);
    return transposed ? transpose(values, standing) : unpadded(parameter, values);
  }

  /** The same as `read` in pieces where it stands as f32; a piece is gone when the next is asked for. */
  async *pieces(parameter: Parameter, prefix = ""): AsyncGenerator<Float32Array> {
    const name = prefix + parameter.name;
    if (this.store.get(name)!.dtype !== "f32" || isTransposed(parameter, this.formats)) {
      return yield await this.read(parameter, prefix);
    }
    const elements = count({ shape: parameter.shape, dtype: "f32" });
    for (let from = 0; from < elements; from += PIECE) {
      const to = Math.min(from + PIECE, elements);
      const values = new Float32Array(await this.store.read(name, [4 * from, 4 * to]));
      yield values;
      free(values);
    }
  }

  /** Sets one parameter, or with `prefix` its gradient or moment, rounded to nearest where it is kept in fewer bits. */
  write(parameter: Parameter, values: Float32Array, prefix = ""): void {
    const name = prefix + parameter.name;
    const { shape } = parameter;
    const format = integerFormat(parameter, this.formats);
    const transposed = isTransposed(parameter, this.formats);
    const standing = transposed ? shape.toReversed() : shape;
    const placed = transposed ? transpose(values, shape) : values;
    if (format === undefined) {
      const { dtype } = this.store.get(name)!;
      return this.store.write(name, packRows(placed, standing.at(-1)!, dtype as FloatType));
    }
    const quantized = quantize(placed, standing, format, "rows");
    this.store.write(name, quantized.values);
    this.store.write(scalesName(name), quantized.scales);
  }

  /** Every parameter, or with `prefix` its gradient or moment, by the checkpoint's key, to be read one at a time. */
  tensors(prefix = ""): NamedTensor[] {
    return this.declared.map((parameter) => ({
      name: this.key(parameter.name),
      shape: parameter.shape,
      read: () => this.read(parameter, prefix),
      pieces: () => this.pieces(parameter, prefix),
    }));
  }

  /**
   * Writes a Hugging Face folder, whole or not at all: config.json, weights as F32, generation_config.json, and the tokenizer
   * where the model has one.
   *
   * @throws UserError where the disk refuses, or where the folder holds what is no part of a checkpoint.
   */
  async save(folder: string): Promise<void> {
    const { tokenizer, generation } = this.options;
    await writeFolder(folder, { config: this.config, tensors: this.tensors(), tokenizer, generation });
  }

  #dense(graph: Graph, rows: number): Context {
    return denseContext(graph, rows, { longest: this.config.n_positions });
  }

  async #program(key: string, build: (graph: Graph) => Record<string, Tensor>): Promise<Program> {
    const known = this.#programs.get(key);
    if (known !== undefined) return known;
    if (this.#programs.size >= PROGRAMS) {
      const [oldest, program] = [...this.#programs][0];
      program[Symbol.dispose]();
      this.#programs.delete(oldest);
    }
    const graph = new Graph();
    const program = await compile(this.device, graph, build(graph), this.store);
    this.#programs.set(key, program);
    return program;
  }

  [Symbol.dispose](): void {
    for (const program of this.#programs.values()) program[Symbol.dispose]();
    this.#programs.clear();
    this.store[Symbol.dispose]();
  }
}

/** A parameter, gradient or moment of the model, unpadded. */
export interface NamedTensor {
  /** The checkpoint's key. */
  readonly name: string;
  readonly shape: readonly number[];
  readonly read: () => Promise<Float32Array>;
  /** The same in pieces, where it can be had so: each is gone when the next is asked for. */
  readonly pieces?: () => AsyncIterable<Float32Array>;
}

/** Frees an array's bytes now: V8 would hold those of all tensors until it next collects. */
export function free(values: Float32Array): void {
  (values.buffer as ArrayBuffer).transfer(0);
}

function unpadded({ shape }: Parameter, values: Float32Array): Float32Array {
  return values.subarray(0, count({ shape, dtype: "f32" }));
}

/** A matrix's columns as rows. */
function transpose(values: Float32Array, [rows, columns]: readonly number[]): Float32Array {
  const result = new Float32Array(rows * columns);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) result[column * rows + row] = values[row * columns + column];
  }
  return result;
}
