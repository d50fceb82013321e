/** The routes between text and token ids, in vLLM's form. They ask only the tokenizer, never the engine. */
import { createRoute, type OpenAPIHono, z } from "@hono/zod-openapi";
import { outOfRange } from "./job.ts";
import type { Models } from "./models.ts";
import { isToken } from "./fields.ts";
import { errors, json } from "./protocol.ts";
import { bytesOf } from "./stream.ts";

const model = z.string({ error: "the model's name" }).nullish();

const TokenizeRequest = z.object({ model, prompt: z.string({ error: "a text" }) }, { error: "a JSON object" })
  .openapi("TokenizeRequest");

const Tokens = z.object({ tokens: z.array(z.int()), count: z.int(), max_model_len: z.int() }).openapi("Tokens");

const DetokenizeRequest = z.object({
  model,
  tokens: z.custom<number[]>((value) => Array.isArray(value) && value.every(isToken), { error: "a list of token ids" })
    .openapi({ type: "array", items: { type: "integer", minimum: 0 } }),
}, { error: "a JSON object" }).openapi("DetokenizeRequest");

const tokenizeRoute = createRoute({
  method: "post",
  path: "/tokenize",
  request: { body: { ...json(TokenizeRequest, "A text"), required: true } },
  responses: { 200: json(Tokens, "The ids a completion of this prompt would see"), ...errors },
});

const detokenizeRoute = createRoute({
  method: "post",
  path: "/detokenize",
  request: { body: { ...json(DetokenizeRequest, "Token ids"), required: true } },
  responses: { 200: json(z.object({ prompt: z.string() }), "Their text"), ...errors },
});

/** Adds the routes. A request without a model's name is for the first one. */
export function addTokens(app: OpenAPIHono, models: Models): void {
  const find = (name: string | null | undefined) => models.get(name ?? models.infos[0].id, "model");
  app.openapi(tokenizeRoute, async (c) => {
    const { model, prompt } = c.req.valid("json");
    const { tokenizer, engine } = await find(model);
    const tokens = [...tokenizer.encode(prompt, { allowSpecial: true })];
    return c.json({ tokens, count: tokens.length, max_model_len: engine.contextLength }, 200);
  });
  app.openapi(detokenizeRoute, async (c) => {
    const { model, tokens } = c.req.valid("json");
    const served = await find(model);
    const { tokenizer, engine } = served;
    const bad = tokens.find((token) => token >= engine.vocabSize);
    if (bad !== undefined) throw outOfRange(bad, served, "tokens");
    // A padded vocabulary has ids without text.
    return c.json({ prompt: tokenizer.decode(tokens.filter((token) => bytesOf(tokenizer, token).length > 0)) }, 200);
  });
}
