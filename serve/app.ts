/** The HTTP face: what the routes share, and which methods they take. It knows no model and makes no text. */
import { OpenAPIHono } from "@hono/zod-openapi";
import type { Hono } from "hono";
import { addChat } from "./chat_routes.ts";
import { addCompletions } from "./completion_routes.ts";
import { RequestError, respond, toRequestError } from "./errors.ts";
import type { ServedModel } from "./job.ts";
import { addModels } from "./model_routes.ts";
import { type Models, type ModelSource, openModels } from "./models.ts";
import { modelSource } from "./open_model.ts";
import { Operation, type OperationOptions } from "./operation.ts";
import { explain } from "./protocol.ts";
import { addPlayground } from "./playground.ts";
import { recordOf } from "./record.ts";
import { addTokens } from "./tokens.ts";

/** DIR or NAME=DIR, opened and closed by the app; a model that is open and stays its owner's; or how to open one. */
export type ModelOption = string | ServedModel | ModelSource;

export interface AppOptions extends OperationOptions {
  readonly model: ModelOption | readonly ModelOption[];
}

/** A Hono app that ends its generations, and closes the models it opened, when disposed. */
export interface App extends Hono, AsyncDisposable {
  readonly models: Models;
  /** Takes no more requests, and waits for those under way, so many seconds at most. */
  drain(seconds: number): Promise<void>;
}

/**
 * Makes the HTTP app for one or several models; resolves when it can answer.
 *
 * @throws UserError for a folder that can't be served, and for two models of one name.
 * @example
 * ```ts
 * import { createApp, createEngine, loadModel, loadTokenizer, openDevice } from "../mod.ts";
 *
 * using device = await openDevice();
 * using model = await loadModel(device, "tests/fixtures/gpt2-tiny");
 * await using engine = createEngine(model);
 * const tokenizer = await loadTokenizer("bytes");
 * await using app = await createApp({ model: { name: "tiny", engine, tokenizer } }); // or the path of a model folder
 * const response = await app.request("/v1/completions", {
 *   method: "POST",
 *   headers: { "content-type": "application/json" },
 *   body: JSON.stringify({ model: "tiny", prompt: "My fellow Americans,", max_tokens: 5 }),
 * });
 * const { usage } = await response.json();
 * if (usage.completion_tokens !== 5) throw new Error("a token is missing");
 * ```
 */
export async function createApp({ model, ...options }: AppOptions): Promise<App> {
  await using resources = new AsyncDisposableStack();
  const given = Array.isArray(model) ? model as readonly ModelOption[] : [model as ModelOption];
  const sources = given.map((option) => typeof option === "string" ? modelSource(option) : option);
  const models = resources.use(await openModels(await Promise.all(sources)));
  const operation = new Operation(models, options);
  resources.defer(() => operation.close());
  const app = createRoutes(operation) as Hono;
  const owned = resources.move();
  return Object.assign(app, {
    models,
    drain: (seconds: number) => operation.drain(seconds),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  });
}

function createRoutes(operation: Operation): OpenAPIHono {
  const app = new OpenAPIHono({
    defaultHook: async (result, c) => {
      if (!result.success) throw explain(result.error, result.target === "json" ? await c.req.json() : undefined);
    },
  });
  operation.guard(app);
  addModels(app, operation);
  addTokens(app, operation.models);
  addCompletions(app, operation);
  addChat(app, operation);
  addPlayground(app);
  app.doc31("/openapi.json", { openapi: "3.1.0", info: { title: "wgpt", version: "1" } });
  operation.countPaths(app.routes.map(({ path }) => path));
  refuseOtherMethods(app);
  app.notFound((c) => respond(c, new RequestError(404, `Nothing is at ${c.req.path}`, null, "not_found")));
  app.onError((error, c) => {
    const known = toRequestError(error);
    if (known.status === 500) recordOf(c).failure = error;
    return respond(c, known);
  });
  return app;
}

/** Answers 405 on every path that has a route, for the methods it hasn't. */
function refuseOtherMethods(app: OpenAPIHono): void {
  const methods = new Map<string, Set<string>>();
  for (const { path, method } of app.routes) {
    if (method === "ALL") continue; // middleware
    methods.set(path, (methods.get(path) ?? new Set()).add(method));
  }
  for (const [path, allowed] of methods) {
    const allow = [...allowed].join(", ");
    app.all(path, (c) => {
      c.header("Allow", allow);
      throw new RequestError(405, `Use ${allow} for ${c.req.path}, not ${c.req.method}`);
    });
  }
}
