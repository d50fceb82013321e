/** The OpenAI completions API as types: what a request may say, its defaults, what answers look like. Knows no server. */
import { z } from "@hono/zod-openapi";
import { ErrorBody, RequestError } from "./errors.ts";
import { flag, integer, isToken, optionalInteger, textFields } from "./fields.ts";

/** A JSON body of a route. */
export const json = <T extends z.ZodType>(schema: T, description: string) => ({
  content: { "application/json": { schema } },
  description,
});

/** What every route may answer instead. */
export const errors = { default: json(ErrorBody, "What is wrong, and with which parameter") };

/** What a route that makes text answers. */
export const answers = <T extends z.ZodType>(schema: T, description: string) => ({
  200: {
    content: { "application/json": { schema }, "text/event-stream": { schema: z.string() } },
    description: `${description}; with \`stream\`, as events that end in \`data: [DONE]\``,
  },
  ...errors,
});

const isText = (value: unknown) => typeof value === "string";
const isTokens = (value: unknown) => Array.isArray(value) && value.length > 0 && value.every(isToken);

/** One prompt or several, each a text or token ids; null is the empty text. */
type PromptInput = string | number[] | string[] | number[][] | null;

const prompt = z.custom<PromptInput>(
  (value) =>
    value === null || isText(value) || isTokens(value) ||
    (Array.isArray(value) && value.length > 0 && (value.every(isText) || value.every(isTokens))),
  { error: "a text, a list of token ids, or a list of either, not empty" },
).transform((value): (string | number[])[] => {
  if (value === null) return [""];
  if (typeof value === "string") return [value];
  return typeof value[0] === "number" ? [value as number[]] : value as string[] | number[][];
}).openapi({
  type: ["string", "array", "null"],
  anyOf: [
    { type: "string" },
    { type: "array", items: { type: "integer" }, minItems: 1 },
    { type: "array", items: { type: "string" }, minItems: 1 },
    { type: "array", items: { type: "array", items: { type: "integer" }, minItems: 1 }, minItems: 1 },
    { type: "null" },
  ],
});

/** The body of `POST /v1/completions`, defaults filled in. Unknown fields are ignored. */
export const CompletionRequest = z.object({
  ...textFields,
  prompt,
  max_tokens: integer(0, undefined, 16),
  best_of: z.int({ error: "an integer" }).nullish(),
  suffix: z.string({ error: "a text" }).nullish(),
  echo: flag(),
  logprobs: optionalInteger(0, 5),
  prompt_logprobs: optionalInteger(0, 5),
}, { error: "a JSON object" }).openapi("CompletionRequest");
export type CompletionRequest = z.infer<typeof CompletionRequest>;

export const Usage = z.object({ prompt_tokens: z.int(), completion_tokens: z.int(), total_tokens: z.int() }).openapi(
  "Usage",
);
export type Usage = z.infer<typeof Usage>;

/** The i-th entries belong together; `text_offset` counts Unicode code points from the start of the choice's text. */
const Logprobs = z.object({
  tokens: z.array(z.string()),
  token_logprobs: z.array(z.number().nullable()),
  top_logprobs: z.array(z.record(z.string(), z.number()).nullable()),
  text_offset: z.array(z.int()),
}).openapi("Logprobs");
export type Logprobs = z.infer<typeof Logprobs>;

/** Of each prompt token, by id: itself and the likeliest in its place; null for the first, which has none before it. */
const PromptLogprobs = z.array(
  z.record(z.string(), z.object({ logprob: z.number(), decoded_token: z.string() })).nullable(),
);
export type PromptLogprobs = z.infer<typeof PromptLogprobs>;

const Choice = z.object({
  text: z.string(),
  index: z.int(),
  logprobs: Logprobs.nullable(),
  finish_reason: z.enum(["stop", "length"]).nullable(),
  prompt_logprobs: PromptLogprobs.optional(),
});
export type Choice = z.infer<typeof Choice>;

/** A whole answer, or one event of a streamed one (there `usage` is null or missing but in the last). */
export const Completion = z.object({
  id: z.string(),
  object: z.literal("text_completion"),
  created: z.int(),
  model: z.string(),
  choices: z.array(Choice),
  usage: Usage.nullish(),
}).openapi("Completion");
export type Completion = z.infer<typeof Completion>;

export const ModelInfo = z.object({
  id: z.string(),
  object: z.literal("model"),
  created: z.int(),
  owned_by: z.string(),
}).openapi("Model");

export const ModelList = z.object({ object: z.literal("list"), data: z.array(ModelInfo) }).openapi("ModelList");

/** A short JSON form of a value for messages. */
function preview(value: unknown): string {
  if (typeof value === "object" && value !== null) {
    return Array.isArray(value) ? `a list of ${value.length}` : "an object";
  }
  return JSON.stringify(typeof value === "string" ? value.slice(0, 60) : value);
}

/** Makes the answer to a body that doesn't fit the schema, from the first of its faults. */
export function explain(
  error: { issues: readonly { path: readonly PropertyKey[]; message: string }[] },
  body: unknown,
) {
  const { path, message } = error.issues[0];
  if (path.length === 0) return new RequestError(400, `Send ${message}, not ${preview(body)}`);
  let value = body;
  for (const key of path) value = (value as Record<PropertyKey, unknown> | undefined)?.[key];
  const param = path.map(String).join(".");
  if (value === undefined) return new RequestError(400, `Give ${param}: it is missing`, param);
  return new RequestError(400, `Set ${param} to ${message}, not ${preview(value)}`, param);
}

/** Refuses what is understood but not offered, and combinations that say nothing. */
export function checkRequest(request: CompletionRequest): void {
  if (request.suffix) throw new RequestError(400, "Leave out suffix: text can't be inserted, only continued", "suffix");
  if (request.best_of != null && request.best_of !== request.n) {
    throw new RequestError(
      400,
      `Leave out best_of: it is ${request.best_of} and only n, ${request.n}, is offered`,
      "best_of",
    );
  }
  if (request.prompt_logprobs !== undefined && request.stream) {
    throw new RequestError(400, "Set stream to false or leave out prompt_logprobs", "prompt_logprobs");
  }
  if (request.stream_options && !request.stream) {
    throw new RequestError(400, "Set stream to true or leave out stream_options", "stream_options");
  }
}
