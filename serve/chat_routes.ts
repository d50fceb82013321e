/** `POST /v1/chat/completions`: a conversation becomes a job. It knows no template and makes no text. */
import { createRoute, type OpenAPIHono } from "@hono/zod-openapi";
import { answer } from "./answer.ts";
import { chatForm, prepareChat } from "./chat_completions.ts";
import { ChatCompletion, ChatRequest, checkChatRequest } from "./chat_protocol.ts";
import type { Operation } from "./operation.ts";
import { answers, json } from "./protocol.ts";

const chatRoute = createRoute({
  method: "post",
  path: "/v1/chat/completions",
  request: { body: { ...json(ChatRequest, "A conversation"), required: true } },
  responses: answers(ChatCompletion, "The next message"),
});

export function addChat(app: OpenAPIHono, operation: Operation): void {
  app.openapi(chatRoute, async (c) => {
    const request = c.req.valid("json");
    checkChatRequest(request);
    const job = prepareChat(await operation.models.get(request.model, "model"), request);
    return await answer(c, job, chatForm(job), operation);
  });
}
