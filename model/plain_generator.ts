/**
 * The plain generator: the whole context again for each token, with nothing cached. It is the specification that cached
 * engines are tested against, and what training samples with.
 */
import { embedding } from "../kernels/embedding.ts";
import type { Graph, Tensor } from "../kernels/gpu/graph.ts";
import type { CompileOptions, Program } from "../kernels/gpu/program.ts";
import { topLogprobs } from "../kernels/sample.ts";
import { denseContext } from "./context.ts";
import { checkPrompt, type Engine, type Generated, generated, type Sampling, type TokenLogprob } from "./generate.ts";
import { logits } from "./linear.ts";
import type { Model } from "./model.ts";
import { Programs } from "./programs.ts";
import { History, pairs, readChoices, samplingGraph, samplingInputs, TOP_LOGPROBS, type Wishes } from "./sampling.ts";
import { createScope, type Formats } from "./scope.ts";
import type { Shape } from "./shape.ts";

/** The plain generator over a model's own weights, as they are when it is asked. */
export class PlainGenerator implements Engine {
  readonly #programs: Programs;

  constructor(readonly model: Model, options: CompileOptions = {}) {
    this.#programs = new Programs(model, options);
  }

  get contextLength(): number {
    return this.model.config.n_positions;
  }

  get vocabSize(): number {
    return this.model.config.vocab_size;
  }

  async *generate(prompt: Uint32Array, sampling: Sampling, signal?: AbortSignal): AsyncGenerator<Generated> {
    checkPrompt(this, prompt);
    const history = new History(prompt, sampling);
    const { wishes } = history;
    const adjust = wishes.adjust ? { entries: this.vocabSize } : undefined;
    const program = await this.#sampler(wishes);
    const tokens = [...prompt];
    for (let made = 1; made <= sampling.maxTokens && !signal?.aborted; made++) {
      program.run({
        ...this.#rows(tokens),
        last: new Uint32Array([tokens.length - 1]),
        ...samplingInputs([history], 1, adjust),
      });
      const [choice] = await readChoices(program, wishes, [sampling.logprobs]);
      const next = generated(choice, sampling, made, {
        full: tokens.length >= this.contextLength,
      });
      yield next;
      if (next.finish !== undefined) return;
      tokens.push(next.token);
      history.push(next.token);
    }
  }

  async score(tokens: Uint32Array, top: number): Promise<(TokenLogprob | null)[]> {
    checkPrompt(this, tokens);
    const program = await this.#scorer();
    const k = Math.min(TOP_LOGPROBS, this.vocabSize);
    const results: (TokenLogprob | null)[] = [null];
    for (let row = 0; row + 1 < tokens.length; row++) {
      program.run({ ...this.#rows([...tokens]), last: new Uint32Array([row]), target: tokens.slice(row + 1, row + 2) });
      const [given, ids, logprobs] = await program.read("given", "ids", "logprobs");
      const best = pairs(new Uint32Array(ids), new Float32Array(logprobs), Math.min(top, k));
      results.push({ token: tokens[row + 1], logprob: new Float32Array(given)[0], top: best });
    }
    return results;
  }

  /** The whole context's rows; those past the tokens attend to nothing that is read. */
  #rows(tokens: readonly number[]): Record<string, Uint32Array> {
    const rows = new Uint32Array(this.contextLength);
    rows.set(tokens);
    return { tokens: rows, positions: rows.map((_, row) => row), starts: new Uint32Array(rows.length) };
  }

  #sampler(wishes: Wishes): Promise<Program> {
    return this.#programs.get(JSON.stringify(wishes), (graph) => {
      return samplingGraph(graph, nextLogits(graph, this.model, this.model.formats), this.vocabSize, wishes);
    });
  }

  #scorer(): Promise<Program> {
    return this.#programs.get("score", (graph) => {
      const k = Math.min(TOP_LOGPROBS, this.vocabSize);
      return {
        ...topLogprobs(
          nextLogits(graph, this.model, this.model.formats),
          graph.input("target", [1], "u32"),
          this.vocabSize,
          k,
        ),
      };
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#programs[Symbol.asyncDispose]();
  }
}

/** Logits (1, V padded) of the row that the input `last` names, of a whole context. */
export function nextLogits(graph: Graph, { architecture, config }: Shape, formats: Formats): Tensor {
  const scope = createScope(graph, formats);
  const hidden = architecture.hidden(scope, denseContext(graph, config.n_positions));
  const last = embedding(hidden, graph.input("last", [1], "u32"));
  return logits(last, architecture.unembed(scope), formats);
}
