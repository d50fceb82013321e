/** The OpenAI chat API as types: what a request may say, what answers look like. It knows no server and no template. */
import { z } from "@hono/zod-openapi";
import { RequestError } from "./errors.ts";
import { flag, optionalInteger, textFields } from "./fields.ts";
import { Usage } from "./protocol.ts";

const ROLES = ["developer", "system", "user", "assistant", "tool", "function"] as const;

const isTextPart = (part: unknown) =>
  typeof part === "object" && part !== null && "type" in part && part.type === "text" && "text" in part &&
  typeof part.text === "string";

/** A text or its parts, which are joined. Images, sound and files aren't understood. */
const content = z.custom<string | { text: string }[] | null>(
  (value) => value == null || typeof value === "string" || (Array.isArray(value) && value.every(isTextPart)),
  { error: "a text or a list of text parts" },
).transform((value) => Array.isArray(value) ? value.map(({ text }) => text).join("") : value ?? null).openapi({
  type: ["string", "array", "null"],
  anyOf: [
    { type: "string" },
    {
      type: "array",
      items: {
        type: "object",
        required: ["type", "text"],
        properties: { type: { type: "string", enum: ["text"] }, text: { type: "string" } },
      },
    },
    { type: "null" },
  ],
});

const Message = z.looseObject({
  role: z.enum(ROLES, { error: `one of ${ROLES.join(", ")}` }),
  content,
  name: z.string({ error: "a text" }).nullish(),
  tool_calls: z.array(z.looseObject({}, { error: "an object" }), { error: "a list" }).nullish(),
  tool_call_id: z.string({ error: "a text" }).nullish(),
}, { error: "an object" }).openapi("ChatMessage");

const Tool = z.looseObject({ type: z.string({ error: "a text" }) }, { error: "an object" });

const object = () => z.looseObject({}, { error: "an object" });

/** The body of `POST /v1/chat/completions`, defaults filled in. Fields that OpenAI hasn't are vLLM's; unknown fields are ignored. */
export const ChatRequest = z.object({
  ...textFields,
  messages: z.array(Message, { error: "a list of messages" }).min(1, { error: "a list of at least one message" }),
  max_completion_tokens: optionalInteger(0, Number.MAX_SAFE_INTEGER),
  max_tokens: optionalInteger(0, Number.MAX_SAFE_INTEGER),
  logprobs: flag(),
  top_logprobs: optionalInteger(0, 20),
  tools: z.array(Tool, { error: "a list of tools" }).nullish(),
  tool_choice: z.union([z.string(), object()], { error: "'none' or 'auto'" }).nullish(),
  parallel_tool_calls: flag().optional(),
  functions: z.array(object(), { error: "a list" }).nullish(),
  function_call: z.union([z.string(), object()], { error: "a text or an object" }).nullish(),
  response_format: z.looseObject({ type: z.string({ error: "a text" }) }, { error: "an object" }).nullish(),
  modalities: z.array(z.string({ error: "a text" }), { error: "a list of texts" }).nullish(),
  audio: object().nullish(),
  web_search_options: object().nullish(),
  add_generation_prompt: z.boolean({ error: "true or false" }).nullish().transform((value) => value ?? true)
    .openapi({ type: "boolean", default: true }),
  continue_final_message: flag(),
  chat_template_kwargs: object().nullish(),
}, { error: "a JSON object" }).openapi("ChatCompletionRequest");
export type ChatRequest = z.infer<typeof ChatRequest>;

const Alternative = { token: z.string(), logprob: z.number(), bytes: z.array(z.int()) };

const TokenLogprobs = z.object({
  content: z.array(z.object({ ...Alternative, top_logprobs: z.array(z.object(Alternative)) })),
  refusal: z.null(),
}).openapi("ChatLogprobs");
export type TokenLogprobs = z.infer<typeof TokenLogprobs>;

const finish = z.enum(["stop", "length"]);

const head = { id: z.string(), created: z.int(), model: z.string() };

export const ChatCompletion = z.object({
  ...head,
  object: z.literal("chat.completion"),
  choices: z.array(z.object({
    index: z.int(),
    message: z.object({ role: z.literal("assistant"), content: z.string(), refusal: z.null() }),
    logprobs: TokenLogprobs.nullable(),
    finish_reason: finish,
  })),
  usage: Usage,
}).openapi("ChatCompletion");
export type ChatCompletion = z.infer<typeof ChatCompletion>;

/** One event of a streamed answer. */
export const ChatChunk = z.object({
  ...head,
  object: z.literal("chat.completion.chunk"),
  choices: z.array(z.object({
    index: z.int(),
    delta: z.object({ role: z.literal("assistant").optional(), content: z.string().optional() }),
    logprobs: TokenLogprobs.nullable(),
    finish_reason: finish.nullable(),
  })),
  usage: Usage.nullish(),
}).openapi("ChatCompletionChunk");
export type ChatChunk = z.infer<typeof ChatChunk>;

/** Refuses what is understood but not offered, and combinations that say nothing. */
export function checkChatRequest(request: ChatRequest): void {
  const { response_format, tool_choice, modalities } = request;
  const refuse = (param: string, what: string): never => {
    throw new RequestError(400, what, param);
  };
  if (response_format && response_format.type !== "text") {
    refuse("response_format", `Leave out response_format: text can't be held to '${response_format.type}'`);
  }
  if (tool_choice != null && tool_choice !== "none" && tool_choice !== "auto") {
    refuse("tool_choice", "Set tool_choice to 'none' or 'auto': a call can't be forced");
  }
  if (request.functions?.length) refuse("functions", "Give tools, not functions");
  if (request.function_call != null && request.function_call !== "none") {
    refuse("function_call", "Give tools, not functions");
  }
  if (request.audio || modalities?.some((one) => one !== "text")) {
    refuse(request.audio ? "audio" : "modalities", "Leave out audio: answers are text");
  }
  if (request.web_search_options) {
    refuse("web_search_options", "Leave out web_search_options: nothing is searched here");
  }
  if (request.top_logprobs !== undefined && !request.logprobs) {
    refuse("top_logprobs", "Set logprobs to true or leave out top_logprobs");
  }
  if (request.stream_options && !request.stream) {
    refuse("stream_options", "Set stream to true or leave out stream_options");
  }
  if (request.continue_final_message && request.messages.at(-1)!.role !== "assistant") {
    refuse("continue_final_message", "Let the last message be the assistant's, to go on with it");
  }
}
