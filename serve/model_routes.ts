/** The routes that say which models there are and whether they answer. They ask no engine. */
import { createRoute, type OpenAPIHono, z } from "@hono/zod-openapi";
import { RequestError } from "./errors.ts";
import type { Models } from "./models.ts";
import { errors, json, ModelInfo, ModelList } from "./protocol.ts";

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

export function addModels(app: OpenAPIHono, models: Models): void {
  const find = (name: string) => {
    const info = models.infos.find(({ id }) => id === name);
    if (info) return info;
    throw new RequestError(404, `Nothing is called '${name}': /v1/models lists the models`, null, "model_not_found");
  };
  app.openapi(healthRoute, (c) => {
    if (models.ready) return c.json({ status: "ok" as const }, 200);
    throw new RequestError(503, "The model can't answer now", null, "model_unavailable", { "Retry-After": "1" });
  });
  app.openapi(modelsRoute, (c) => c.json({ object: "list" as const, data: [...models.infos] }, 200));
  app.openapi(modelRoute, (c) => c.json(find(c.req.valid("param").id), 200));
  app.get("/v1/models/:id{.+}", (c) => c.json(find(c.req.param("id")), 200)); // with slashes
}
