/** A Hugging Face GPT-2 folder on the best GPU of the machine, computing losses of single tokens. */
import { openDevice } from "../kernels/gpu/device.ts";
import { Graph } from "../kernels/gpu/graph.ts";
import { compile } from "../kernels/gpu/program.ts";
import { denseContext } from "../model/context.ts";
import { loadModel } from "../model/load.ts";
import { evaluation } from "../model/objective.ts";
import type { WeightFormat } from "../model/scope.ts";
import type { Scorer } from "./scorer.ts";

/**
 * Loads the model; a batch is at least as long as its context.
 *
 * @throws UserError that names the file and the fault, with exit code 3 without an adapter.
 */
export async function openScorer(
  folder: string,
  batchRows: (context: number) => number,
  dtype?: WeightFormat,
): Promise<Scorer> {
  await using opened = new AsyncDisposableStack();
  const device = opened.use(await openDevice());
  const model = opened.use(await loadModel(device, folder, { dtype }));
  const { vocab_size, n_positions } = model.config;
  const rows = Math.max(n_positions, batchRows(n_positions));
  const graph = new Graph();
  const { rowLosses } = evaluation(graph, model.architecture, denseContext(graph, rows), vocab_size, model.formats);
  const program = opened.use(await compile(device, graph, { rowLosses }, model.store));
  const owned = opened.move();
  return {
    rows,
    contextLength: n_positions,
    async losses({ tokens, targets, positions, starts }) {
      program.run({ tokens, targets, positions, starts, scale: new Float32Array([1]) });
      const [losses] = await program.read("rowLosses");
      return new Float32Array(losses, 0, rows);
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}
