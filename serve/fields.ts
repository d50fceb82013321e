/** Fields that requests for text have in common, as zod schemas. It knows no route. */
import { z } from "@hono/zod-openapi";

// In the schemas below an error says what is wanted; `explain` adds the field's name and the value it got.

export function number(from: number, to: number, fallback: number) {
  const error = `a number from ${from} to ${to}`;
  return z.number({ error }).min(from, { error }).max(to, { error }).nullish().transform((value) => value ?? fallback)
    .openapi({ type: "number", minimum: from, maximum: to, default: fallback });
}

export function integer(from: number, to: number | undefined, fallback: number) {
  const error = to === undefined ? `an integer of at least ${from}` : `an integer from ${from} to ${to}`;
  return z.int({ error }).min(from, { error }).max(to ?? Number.MAX_SAFE_INTEGER, { error }).nullish()
    .transform((value) => value ?? fallback).openapi({
      type: "integer",
      minimum: from,
      maximum: to,
      default: fallback,
    });
}

export function flag(error = "true or false") {
  return z.boolean({ error }).nullish().transform((value) => value ?? false).openapi({
    type: "boolean",
    default: false,
  });
}

export const isToken = (value: unknown) => typeof value === "number" && Number.isInteger(value) && value >= 0;

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

const stopTokenIds = z.custom<number[]>(
  (value) => Array.isArray(value) && value.length <= 64 && value.every(isToken),
  { error: "a list of at most 64 token ids" },
).nullish().transform((value) => value ?? [])
  .openapi({ type: "array", items: { type: "integer", minimum: 0 }, maxItems: 64 });

/** A field that is left out where it says nothing. */
export const optionalInteger = (from: number, to: number) => {
  const error = `an integer from ${from} to ${to}`;
  return z.int({ error }).min(from, { error }).max(to, { error }).nullish().transform((value) => value ?? undefined)
    .openapi({ type: "integer", minimum: from, maximum: to });
};

/** How text is chosen and where it ends. Fields that OpenAI hasn't are vLLM's. */
export const textFields = {
  model: z.string({ error: "the model's name" }),
  temperature: number(0, 2, 1),
  top_p: number(0, 1, 1),
  top_k: integer(-1, undefined, 0),
  min_p: number(0, 1, 0),
  n: integer(1, 128, 1),
  stop,
  seed,
  presence_penalty: number(-2, 2, 0),
  frequency_penalty: number(-2, 2, 0),
  repetition_penalty: number(0.01, 10, 1),
  logit_bias: logitBias,
  stop_token_ids: stopTokenIds,
  ignore_eos: flag(),
  min_tokens: integer(0, undefined, 0),
  stream: flag(),
  stream_options: z.object({ include_usage: flag() }, { error: "an object" }).nullish(),
  user: z.string({ error: "a text" }).nullish(),
};
