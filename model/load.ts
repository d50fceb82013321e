/** Models made: loaded from a Hugging Face folder, or new with random weights. It knows no program and no optimizer. */
import { join } from "node:path";
import type { Device } from "../kernels/gpu/device.ts";
import { count } from "../kernels/gpu/graph.ts";
import { normals } from "../kernels/random.ts";
import { readFolder } from "./checkpoint.ts";
import { UserError } from "./errors.ts";
import { exists } from "./files.ts";
import type { Gpt2Config } from "./gpt2_config.ts";
import { free, Model, PIECE } from "./model.ts";
import { type Parameter, type WeightFormat, weightFormats } from "./scope.ts";
import { loadTokenizer, type Tokenizer } from "./tokenizer.ts";

export interface LoadOptions {
  /** Format of the weights in memory; tensors of one dimension are f32 in any case. Default: f32. */
  readonly dtype?: WeightFormat;
  /** Lays weights out for decoding: such a model, and one of int8 or int4, gives no gradients. */
  readonly serving?: boolean;
}

/**
 * Loads a Hugging Face GPT-2 folder.
 *
 * @throws UserError that names the file and the fault.
 * @example
 * ```ts
 * import { loadModel, openDevice } from "../mod.ts";
 *
 * using device = await openDevice();
 * using model = await loadModel(device, "tests/fixtures/gpt2-tiny");
 * const { loss, gradients } = await model.lossAndGradients([[4, 32]], [[32, 31]]);
 * if (!(loss > 0) || gradients.size !== model.declared.length) throw new Error("a gradient is missing");
 * ```
 */
export async function loadModel(device: Device, folder: string, options: LoadOptions = {}): Promise<Model> {
  const { dtype = "f32", serving } = options;
  if (!weightFormats.includes(dtype)) {
    throw new UserError(`Cannot load ${folder} as ${dtype}: weights are kept as ${weightFormats.join(", ")}`, 2);
  }
  using files = await readFolder(folder);
  const model = new Model(device, files.config, {
    bare: files.prefix === "",
    tokenizer: await tokenizerIn(files.folder),
    generation: files.generation,
    weights: dtype,
    serving,
  });
  try {
    for (const parameter of model.declared) {
      const values = await files.readF32(parameter.name);
      model.write(parameter, values);
      free(values);
    }
    return model;
  } catch (error) {
    model[Symbol.dispose]();
    throw error;
  }
}

/** The folder's tokenizer, where it has one. */
async function tokenizerIn(folder: string): Promise<Tokenizer | undefined> {
  for (const file of ["tokenizer.json", "vocab.json"]) {
    if (await exists(join(folder, file))) return await loadTokenizer(folder);
  }
  return undefined;
}

/**
 * A new model with random weights: the same seed gives the same bits.
 *
 * @throws RangeError where the adapter has no buffers of the parameters' sizes.
 */
export function createModel(
  device: Device,
  config: Gpt2Config,
  options: { readonly seed: number; readonly tokenizer?: Tokenizer },
): Model {
  const model = new Model(device, config, { tokenizer: options.tokenizer });
  model.declared.forEach((parameter, stream) => {
    const elements = count({ shape: parameter.shape, dtype: "f32" });
    for (let from = 0; from < elements; from += PIECE) {
      const values = initial(parameter, [options.seed, stream], from, Math.min(PIECE, elements - from));
      model.store.write(parameter.name, values, 4 * from);
      free(values);
    }
  });
  return model;
}

function initial(
  { init }: Parameter,
  [seed, stream]: readonly [number, number],
  from: number,
  elements: number,
): Float32Array {
  if ("value" in init) return new Float32Array(elements).fill(init.value);
  const values = normals(seed, stream, elements, from);
  for (let i = 0; i < elements; i++) values[i] *= init.std;
  return values;
}
