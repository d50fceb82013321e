/** What is answered until the models are loaded: the page, which asks again by itself, and 503 to all else. It knows no model. */
import { Hono } from "hono";
import { RequestError, respond } from "./errors.ts";
import { addPlayground } from "./playground.ts";

export function createLoadingApp(): Hono {
  const app = new Hono();
  addPlayground(app);
  app.notFound((c) =>
    respond(
      c,
      new RequestError(503, "Wait: the model is being loaded", null, "model_loading", { "Retry-After": "1" }),
    )
  );
  return app;
}
