/** The OpenAI completions API as types: what a request may say, its defaults, what answers look like. Knows no server. */
import { z } from "@hono/zod-openapi";
import { ErrorBody, RequestError } from "./errors.ts";

/** A JSON body of a route. */
export const json = <T extends z.ZodType>(schema: T, description: string) => ({
  content: { "application/json": { schema } },
  description,
});

/** What every route may answer instead. */
export const errors = { default: json(ErrorBody, "What is wrong, and with which parameter") };

// In the schemas below an error says what is wanted; `explain` adds the field's name and the value it got.

function number(from: number, to: number, fallback: number) {
  const error = `a number from ${from} to ${to}`;
  return z.number({ error }).min(from, { error }).max(to, { error }).nullish().transform((value) => value ?? fallback)
    .openapi({ type: "number", minimum: from, maximum: to, default: fallback });
}

function integer(from: number, to: number | undefined, fallback: number) {
  const error = to === undefined ? `an integer of at least ${from}` : `an integer from ${from} to ${to}`;
  return z.int({ error }).min(from, { error }).max(to ?? Number.MAX_SAFE_INTEGER, { error }).nullish()
    .transform((value) => value ?? fallback).openapi({
      type: "integer",
      minimum: from,
      maximum: to,
      default: fallback,
    });
}

function flag(error = "true or false") {
  return z.boolean({ error }).nullish().transform((value) => value ?? false).openapi({
    type: "boolean",
    default: false,
  });
}

export const isToken = (value: unknown) => typeof value === "number" && Number.isInteger(value) && value >= 0;
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

const isStop = (value: unknown) => typeof value === "string" && value.length > 0;

const stop = z.custom<string | string[]>(
  (value) =>
    isStop(value) ||
    (Array.isArray(value) && value.length >= 1 && value.length <= 4 && value.every(isStop)),
  { error: "a text or a list of 1 to 4 texts, none empty" },
).nullish().transform((value) => (value == null ? [] : [value].flat()).map((text) => text.toWellFormed())).openapi({
  type: ["string", "array", "null"],
  anyOf: [
    { type: "string", minLength: 1 },
    { type: "array", items: { type: "string", minLength: 1 }, minItems: 1, maxItems: 4 },
    { type: "null" },
  ],
});

function isBias(value: unknown): boolean {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return false;
  return Object.entries(value).every(([token, bias]) =>
    /^(0|[1-9]\d{0,9})$/.test(token) && typeof bias === "number" && bias >= -100 && bias <= 100
  );
}

const logitBias = z.custom<Record<string, number>>(isBias, {
  error: "an object of token id → number from -100 to 100",
}).nullish().transform((value) => new Map(Object.entries(value ?? {}).map(([token, bias]) => [Number(token), bias])))
  .openapi({ type: "object", additionalProperties: { type: "number", minimum: -100, maximum: 100 } });

const seed = z.number({ error: "a 64-bit integer" })
  .refine((value) => Number.isInteger(value) && Math.abs(value) <= 2 ** 63, { error: "a 64-bit integer" })
  .nullish().openapi({ type: "integer", format: "int64" });

const logprobs = z.int({ error: "an integer from 0 to 5" }).min(0, { error: "an integer from 0 to 5" })
  .max(5, { error: "an integer from 0 to 5" }).nullish().transform((value) => value ?? undefined)
  .openapi({ type: "integer", minimum: 0, maximum: 5 });

const stopTokenIds = z.custom<number[]>(
  (value) => Array.isArray(value) && value.length <= 64 && value.every(isToken),
  { error: "a list of at most 64 token ids" },
).nullish().transform((value) => value ?? [])
  .openapi({ type: "array", items: { type: "integer", minimum: 0 }, maxItems: 64 });

/** The body of `POST /v1/completions`, defaults filled in. Fields that OpenAI hasn't are vLLM's;
 *  unknown fields are ignored. */
export const CompletionRequest = z.object({
  model: z.string({ error: "the model's name" }),
  prompt,
  max_tokens: integer(0, undefined, 16),
  temperature: number(0, 2, 1),
  top_p: number(0, 1, 1),
  top_k: integer(-1, undefined, 0),
  min_p: number(0, 1, 0),
  n: integer(1, 128, 1),
  best_of: z.int({ error: "an integer" }).nullish(),
  suffix: z.string({ error: "a text" }).nullish(),
  stop,
  seed,
  echo: flag(),
  logprobs,
  presence_penalty: number(-2, 2, 0),
  frequency_penalty: number(-2, 2, 0),
  repetition_penalty: number(0.01, 10, 1),
  logit_bias: logitBias,
  stop_token_ids: stopTokenIds,
  ignore_eos: flag(),
  min_tokens: integer(0, undefined, 0),
  prompt_logprobs: logprobs,
  stream: flag(),
  stream_options: z.object({ include_usage: flag() }, { error: "an object" }).nullish(),
  user: z.string({ error: "a text" }).nullish(),
}, { error: "a JSON object" }).openapi("CompletionRequest");
export type CompletionRequest = z.infer<typeof CompletionRequest>;

const Usage = z.object({ prompt_tokens: z.int(), completion_tokens: z.int(), total_tokens: z.int() }).openapi("Usage");
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
  if (request.min_tokens > 0) {
    throw new RequestError(400, "Leave out min_tokens: only max_tokens and ignore_eos set a length", "min_tokens");
  }
  if (request.prompt_logprobs !== undefined && request.stream) {
    throw new RequestError(400, "Set stream to false or leave out prompt_logprobs", "prompt_logprobs");
  }
  if (request.stream_options && !request.stream) {
    throw new RequestError(400, "Set stream to true or leave out stream_options", "stream_options");
  }
}
