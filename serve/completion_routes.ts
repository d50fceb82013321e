/** `POST /v1/completions`: a request becomes a job. It knows no engine and makes no text. */
import { createRoute, type OpenAPIHono } from "@hono/zod-openapi";
import { answer } from "./answer.ts";
import { completionForm } from "./completions.ts";
import { prepare } from "./job.ts";
import type { Operation } from "./operation.ts";
import { answers, checkRequest, Completion, CompletionRequest, json } from "./protocol.ts";

const completionsRoute = createRoute({
  method: "post",
  path: "/v1/completions",
  request: { body: { ...json(CompletionRequest, "What to go on from"), required: true } },
  responses: answers(Completion, "The completion"),
});

export function addCompletions(app: OpenAPIHono, operation: Operation): void {
  app.openapi(completionsRoute, async (c) => {
    const request = c.req.valid("json");
    checkRequest(request);
    const job = prepare(await operation.models.get(request.model, "model"), request);
    return await answer(c, job, completionForm(job), operation);
  });
}
