/** The routes that say which models there are and whether they answer. They ask no engine. */
import { createRoute, type OpenAPIHono, z } from "@hono/zod-openapi";
import { RequestError } from "./errors.ts";
import type { Operation } from "./operation.ts";
import { errors, json, ModelInfo, ModelList } from "./protocol.ts";

const answering = {
  responses: { 200: json(z.object({ status: z.literal("ok") }), "A completion would be answered"), ...errors },
};

const healthRoute = createRoute({ method: "get", path: "/health", ...answering });

/** For those who send requests on: the same, under the name that they look for. */
const readyRoute = createRoute({ method: "get", path: "/ready", ...answering });

const metricsRoute = createRoute({
  method: "get",
  path: "/metrics",
  responses: {
    200: { content: { "text/plain": { schema: z.string() } }, description: "Metrics for Prometheus" },
    ...errors,
  },
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

export function addModels(app: OpenAPIHono, operation: Operation): void {
  const { models } = operation;
  const find = (name: string) => {
    const info = models.infos.find(({ id }) => id === name);
    if (info) return info;
    throw new RequestError(404, `Nothing is called '${name}': /v1/models lists the models`, null, "model_not_found");
  };
  for (const route of [healthRoute, readyRoute]) {
    app.openapi(route, (c) => {
      if (operation.ready) return c.json({ status: "ok" as const }, 200);
      throw new RequestError(503, "The model can't answer now", null, "model_unavailable", { "Retry-After": "1" });
    });
  }
  app.openapi(metricsRoute, async (c) => {
    return c.text(await operation.metrics.text(), 200, { "Content-Type": operation.metrics.registry.contentType });
  });
  app.openapi(modelsRoute, (c) => c.json({ object: "list" as const, data: [...models.infos] }, 200));
  app.openapi(modelRoute, (c) => c.json(find(c.req.valid("param").id), 200));
  app.get("/v1/models/:id{.+}", (c) => c.json(find(c.req.param("id")), 200)); // with slashes
}
