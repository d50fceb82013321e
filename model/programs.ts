/** Programs over a model's parameters, compiled when first asked for and kept. It knows nothing of what they compute. */
import { Graph, type Tensor } from "../kernels/gpu/graph.ts";
import { compile, type CompileOptions, type Program } from "../kernels/gpu/program.ts";
import type { Model } from "./model.ts";

/** Programs by key; disposing frees what they hold besides the parameters. */
export class Programs implements AsyncDisposable {
  readonly #compiled = new Map<string, Promise<Program>>();

  constructor(readonly model: Model, readonly options: CompileOptions = {}) {}

  /** The program called `key`; `outputs` builds its graph the first time. */
  get(key: string, outputs: (graph: Graph) => Readonly<Record<string, Tensor>>): Promise<Program> {
    const known = this.#compiled.get(key);
    if (known !== undefined) return known;
    const graph = new Graph();
    const program = compile(this.model.device, graph, outputs(graph), this.model.store, this.options);
    this.#compiled.set(key, program);
    return program;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const program of this.#compiled.values()) (await program)[Symbol.dispose]();
    this.#compiled.clear();
  }
}
