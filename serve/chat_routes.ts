/** `POST /v1/chat/completions`: a conversation becomes a job. It knows no template and makes no text. */
import { createRoute, type OpenAPIHono, z } from "@hono/zod-openapi";
import { answer } from "./answer.ts";
import { chatForm, prepareChat } from "./chat_completions.ts";
import { ChatCompletion, ChatRequest, checkChatRequest } from "./chat_protocol.ts";
import type { Operation } from "./operation.ts";
import { errors, json } from "./protocol.ts";

const chatRoute = createRoute({
  method: "post",
  path: "/v1/chat/completions",
  request: { body: { ...json(ChatRequest, "A conversation"), required: true } },
  responses: {
    200: {
      content: { "application/json": { schema: ChatCompletion }, "text/event-stream": { schema: z.string() } },
      description: "The next message; with `stream`, as events that end in `data: [DONE]`",
    },
    ...errors,
  },
});

export function addChat(app: OpenAPIHono, operation: Operation): void {
  app.openapi(chatRoute, async (c) => {
    const request = c.req.valid("json");
    checkChatRequest(request);
    const job = prepareChat(await operation.models.get(request.model, "model"), request);
    return await answer(c, job, chatForm(job), operation);
  });
}
