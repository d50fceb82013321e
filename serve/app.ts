/** The HTTP face: routes, status codes, server-sent events. It knows neither the GPU nor how text is made. */
import { createRoute, OpenAPIHono, z } from "@hono/zod-openapi";
import type { Context, Hono } from "hono";
import { bodyLimit } from "hono/body-limit";
import { HTTPException } from "hono/http-exception";
import { streamSSE } from "hono/streaming";
import { collect, type Delta, run, usageOf } from "./completions.ts";
import { type Job, prepare, type ServedModel } from "./job.ts";
import { openModel } from "./open_model.ts";
import {
  checkRequest,
  type Completion,
  Completion as CompletionSchema,
  CompletionRequest,
  errors,
  explain,
  json,
  ModelInfo,
  ModelList,
  RequestError,
} from "./protocol.ts";
import { addTokens } from "./tokens.ts";

export interface AppOptions {
  /** A model folder, opened and owned by the app; or a model that is open and stays its owner's. */
  readonly model: string | ServedModel;
  /** What requests call a model folder; its own name where missing. */
  readonly name?: string;
  /** Larger request bodies are refused; 4 MiB by default. */
  readonly maxBodyBytes?: number;
}

/** A Hono app that ends its generations, and closes the model it opened, when disposed. */
export type App = Hono & AsyncDisposable;

/**
 * Makes the HTTP app for a model; resolves when it can answer.
 *
 * @throws UserError for a folder that can't be served.
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
export async function createApp(options: AppOptions): Promise<App> {
  await using resources = new AsyncDisposableStack();
  const { model } = options;
  const served = typeof model === "string" ? resources.use(await openModel(model, options)) : model;
  const closing = new AbortController();
  resources.defer(() => closing.abort());
  const app = createRoutes(served, closing.signal, options.maxBodyBytes ?? 4 * 2 ** 20);
  const owned = resources.move();
  return Object.assign(app as Hono, { [Symbol.asyncDispose]: () => owned.disposeAsync() });
}

const healthRoute = createRoute({
  method: "get",
  path: "/health",
  responses: { 200: json(z.object({ status: z.literal("ok") }), "A completion would be answered"), ...errors },
});

const modelsRoute = createRoute({
  method: "get",
  path: "/v1/models",
  responses: { 200: json(ModelList, "The models served"), ...errors },
});

const modelRoute = createRoute({
  method: "get",
  path: "/v1/models/{id}",
  request: { params: z.object({ id: z.string() }) },
  responses: { 200: json(ModelInfo, "A model"), ...errors },
});

const completionsRoute = createRoute({
  method: "post",
  path: "/v1/completions",
  request: { body: { content: { "application/json": { schema: CompletionRequest } }, required: true } },
  responses: {
    200: {
      content: { "application/json": { schema: CompletionSchema }, "text/event-stream": { schema: z.string() } },
      description: "The completion; with `stream`, as events that end in `data: [DONE]`",
    },
    ...errors,
  },
});

/** Which method a path takes. */
const methods = {
  "/v1/completions": "POST",
  "/v1/models": "GET",
  "/v1/models/:id{.+}": "GET",
  "/health": "GET",
  "/tokenize": "POST",
  "/detokenize": "POST",
};

function createRoutes(model: ServedModel, closing: AbortSignal, maxBodyBytes: number): OpenAPIHono {
  const app = new OpenAPIHono({
    defaultHook: async (result, c) => {
      if (!result.success) throw explain(result.error, result.target === "json" ? await c.req.json() : undefined);
    },
  });
  app.use(bodyLimit({ maxSize: maxBodyBytes, onError: () => tooLarge(maxBodyBytes) }));
  addModels(app, model);
  addTokens(app, model, (name) => checkName(model, name, "model"));
  app.openapi(healthRoute, (c) => (checkHealth(model, closing), c.json({ status: "ok" as const }, 200)));
  app.openapi(completionsRoute, async (c) => {
    const request = c.req.valid("json");
    checkName(model, request.model, "model");
    checkRequest(request);
    checkHealth(model, closing);
    const job = prepare(model, request);
    const signal = AbortSignal.any([c.req.raw.signal, closing]);
    if (request.stream) return sendEvents(c, job, signal);
    const completion = await answer(job, signal);
    checkHealth(model, closing);
    return c.json(completion, 200);
  });
  app.doc31("/openapi.json", { openapi: "3.1.0", info: { title: "wgpt", version: "1" } });
  for (const [path, allow] of Object.entries(methods)) {
    app.all(path, (c) => {
      c.header("Allow", allow);
      throw new RequestError(405, `Use ${allow} for ${c.req.path}, not ${c.req.method}`);
    });
  }
  app.notFound((c) => respond(c, new RequestError(404, `Nothing is at ${c.req.path}`, null, "not_found")));
  app.onError((error, c) => respond(c, toRequestError(error)));
  return app;
}

function addModels(app: OpenAPIHono, model: ServedModel): void {
  const created = Math.floor(Date.now() / 1000);
  const info: ModelInfo = { id: model.name, object: "model", created, owned_by: "wgpt" };
  app.openapi(modelsRoute, (c) => c.json({ object: "list" as const, data: [info] }, 200));
  app.openapi(modelRoute, (c) => (checkName(model, c.req.valid("param").id, null), c.json(info, 200)));
  app.get("/v1/models/:id{.+}", (c) => (checkName(model, c.req.param("id"), null), c.json(info, 200))); // with slashes
}

function checkName(model: ServedModel, name: string, param: string | null): void {
  if (name === model.name) return;
  throw new RequestError(
    404,
    `Ask for the model '${model.name}': '${name}' isn't served here`,
    param,
    "model_not_found",
  );
}

function checkHealth(model: ServedModel, closing: AbortSignal): void {
  if (!closing.aborted && (model.healthy?.() ?? true)) return;
  throw new RequestError(503, "The model can't answer now", null, "model_unavailable");
}

function tooLarge(maxBodyBytes: number): never {
  throw new RequestError(413, `Send a body of at most ${maxBodyBytes} bytes`, null, "body_too_large");
}

function respond(c: Context, error: RequestError): Response {
  return c.json(error.body, error.status);
}

function toRequestError(error: unknown): RequestError {
  if (error instanceof RequestError) return error;
  if (error instanceof HTTPException && error.status === 415) {
    return new RequestError(415, "Send the request as content-type: application/json");
  }
  if (error instanceof HTTPException) return new RequestError(400, "Send valid JSON as the request body");
  if (error instanceof RangeError) return new RequestError(400, error.message);
  console.error(error);
  return new RequestError(
    500,
    `The generation failed: ${error instanceof Error ? error.message : error}`,
    null,
    "engine_error",
  );
}

/** The fields that all events of an answer share. */
function head(job: Job): Omit<Completion, "choices" | "usage"> {
  return {
    id: `cmpl-${crypto.randomUUID().replaceAll("-", "")}`,
    object: "text_completion",
    created: Math.floor(Date.now() / 1000),
    model: job.model.name,
  };
}

async function answer(job: Job, signal: AbortSignal): Promise<Completion> {
  const { choices, generated } = await collect(job, signal);
  return { ...head(job), choices, usage: usageOf(job, generated) };
}

function sendEvents(c: Context, job: Job, signal: AbortSignal): Response {
  const hungUp = new AbortController();
  c.header("X-Accel-Buffering", "no"); // proxies must not collect events
  return streamSSE(c, async (stream) => {
    stream.onAbort(() => hungUp.abort());
    const send = (data: unknown) => stream.writeSSE({ data: JSON.stringify(data) });
    try {
      for await (const event of events(job, AbortSignal.any([signal, hungUp.signal]))) await send(event);
    } catch (error) {
      await send(toRequestError(error).body);
    }
    await stream.writeSSE({ data: "[DONE]" });
  });
}

async function* events(job: Job, signal: AbortSignal): AsyncGenerator<Completion> {
  const { stream_options } = job.request;
  const common = { ...head(job), ...(stream_options?.include_usage ? { usage: null } : {}) };
  let total = 0;
  for await (const { generated, ...choice } of run(job, signal) as AsyncIterable<Delta>) {
    total += generated;
    yield { ...common, choices: [choice] };
  }
  if (signal.aborted) throw new RequestError(503, "The server is closing", null, "model_unavailable");
  if (stream_options?.include_usage) yield { ...common, choices: [], usage: usageOf(job, total) };
}
