/** The models that are served: which there are, opened at the start or when first asked for. It knows no route and no GPU. */
import { UserError } from "../model/errors.ts";
import { RequestError } from "./errors.ts";
import type { ServedModel } from "./job.ts";

/** A model that can be opened. */
export interface ModelSource {
  /** What requests call it. */
  readonly name: string;
  /** Opened when first asked for, not at the start. */
  readonly lazy?: boolean;
  /** What this opens is closed with the models. */
  open(): Promise<ServedModel & AsyncDisposable>;
}

/** A model as the API lists it. */
export interface ModelInfo {
  readonly id: string;
  readonly object: "model";
  /** Seconds since 1970. */
  readonly created: number;
  readonly owned_by: string;
}

export interface Models extends AsyncDisposable {
  readonly infos: readonly ModelInfo[];
  /** The models that are open. */
  readonly open: readonly ServedModel[];
  /** Whether a request for any of them would be answered now. */
  readonly ready: boolean;
  /** @throws RequestError: 404 for an unknown name, 503 for a model that can't answer now. */
  get(name: string, param?: string | null): Promise<ServedModel>;
}

/**
 * Opens models, one after the other; lazy ones are opened by the first request for them. A ServedModel stays its owner's.
 *
 * @throws UserError for two models of one name; whatever opening a model throws.
 */
export async function openModels(sources: readonly (ServedModel | ModelSource)[]): Promise<Models> {
  const names = sources.map(({ name }) => name);
  const twice = names.find((name, i) => names.indexOf(name) < i);
  if (twice !== undefined) throw new UserError(`Give each model a name of its own: two are called ${twice}`, 2);
  const models = new OpenModels(sources);
  try {
    for (const source of sources) if (!("lazy" in source && source.lazy)) await models.load(source.name);
  } catch (error) {
    await models[Symbol.asyncDispose]();
    throw error;
  }
  return models;
}

class OpenModels implements Models {
  readonly infos: readonly ModelInfo[];
  readonly open: ServedModel[] = [];
  readonly #sources: ReadonlyMap<string, ServedModel | ModelSource>;
  readonly #loading = new Map<string, Promise<ServedModel>>();
  readonly #resources = new AsyncDisposableStack();
  #closed = false;

  constructor(sources: readonly (ServedModel | ModelSource)[]) {
    const created = Math.floor(Date.now() / 1000);
    this.#sources = new Map(sources.map((source) => [source.name, source]));
    this.infos = sources.map(({ name }) => ({ id: name, object: "model", created, owned_by: "wgpt" }));
  }

  get ready(): boolean {
    return !this.#closed && this.open.every((model) => model.healthy?.() ?? true);
  }

  async get(name: string, param: string | null = null): Promise<ServedModel> {
    if (!this.#sources.has(name)) throw unknown(name, [...this.#sources.keys()], param);
    const model = await this.load(name).catch((error) => {
      throw new RequestError(503, `The model can't be opened: ${error.message}`, null, "model_unavailable");
    });
    if (!this.#closed && (model.healthy?.() ?? true)) return model;
    throw new RequestError(503, "The model can't answer now", null, "model_unavailable", { "Retry-After": "1" });
  }

  /** Opens a model unless it is open or being opened; one that failed to open is tried again. */
  load(name: string): Promise<ServedModel> {
    const loading = this.#loading.get(name) ?? this.#load(this.#sources.get(name)!);
    this.#loading.set(name, loading);
    loading.catch(() => this.#loading.delete(name));
    return loading;
  }

  async #load(source: ServedModel | ModelSource): Promise<ServedModel> {
    if (!("open" in source)) {
      this.open.push(source);
      return source;
    }
    const model = await source.open();
    if (this.#closed) {
      await model[Symbol.asyncDispose]();
      throw new Error("the server is closing");
    }
    this.#resources.use(model);
    this.open.push(model);
    return model;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    await Promise.allSettled(this.#loading.values());
    await this.#resources.disposeAsync();
  }
}

function unknown(name: string, names: readonly string[], param: string | null): RequestError {
  const wanted = names.length === 1
    ? `the model '${names[0]}'`
    : `one of the models ${names.map((n) => `'${n}'`).join(", ")}`;
  return new RequestError(404, `Ask for ${wanted}: '${name}' isn't served here`, param, "model_not_found");
}
