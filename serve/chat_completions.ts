/** Chat requests as jobs, and pieces of text in the form of OpenAI's chat completions. It knows no engine and no HTTP. */
import type { TokenLogprob } from "../model/generate.ts";
import type { Tokenizer } from "../model/tokenizer.ts";
import { type Form, headOf } from "./answer.ts";
import type { Message } from "./chat.ts";
import type { ChatChunk, ChatCompletion, ChatRequest, TokenLogprobs } from "./chat_protocol.ts";
import { clamp } from "./completions.ts";
import { RequestError } from "./errors.ts";
import { encodePrompt, type Job, prepare, type ServedModel } from "./job.ts";
import type { Delta, ShownToken } from "./run.ts";
import { bytesOf, tokenText } from "./stream.ts";

/**
 * Checks a chat request against the model and writes its prompt. Special tokens are read wherever they stand in the
 * prompt, in messages too, as other servers do.
 *
 * @throws RequestError for a model without a template, and for all that `prepare` refuses.
 */
export function prepareChat(model: ServedModel, request: ChatRequest): Job {
  if (model.chat === undefined) {
    throw new RequestError(
      400,
      `Ask /v1/completions, or serve ${model.name} with --chat-template chatml or --chat-template FILE: it has no chat template of its own`,
      "model",
      "no_chat_template",
    );
  }
  const text = model.chat.render(request.messages.map(toMessage), {
    tools: request.tools?.length && request.tool_choice !== "none" ? request.tools : undefined,
    addGenerationPrompt: request.add_generation_prompt && !request.continue_final_message,
    continueFinalMessage: request.continue_final_message,
    more: request.chat_template_kwargs ?? {},
  });
  const tokens = [...encodePrompt(model, text)];
  const room = Math.max(1, model.engine.contextLength - tokens.length);
  const { specialTokens } = model.tokenizer;
  const marks = model.chat.stops.map((mark) => specialTokens.get(mark) ?? mark);
  return prepare(model, {
    ...request,
    prompt: [tokens.length > 0 ? tokens : ""],
    max_tokens: request.max_completion_tokens ?? request.max_tokens ?? room,
    logprobs: request.logprobs ? request.top_logprobs ?? 0 : undefined,
    stop: [...request.stop, ...marks.filter((mark) => typeof mark === "string")],
    stop_token_ids: [...request.stop_token_ids, ...marks.filter((mark) => typeof mark === "number")],
    echo: false,
    prompt_logprobs: undefined,
  });
}

/** As templates know messages: the developer is the system, a tool call's arguments are an object. */
function toMessage(message: ChatRequest["messages"][number]): Message {
  const calls = message.tool_calls?.map((call) => {
    const { function: called } = call as { function?: { arguments?: unknown } };
    return called ? { ...call, function: { ...called, arguments: parsed(called.arguments) } } : call;
  });
  return {
    ...message,
    role: message.role === "developer" ? "system" : message.role,
    content: message.content ?? (calls?.length ? null : ""),
    ...(calls && { tool_calls: calls }),
  };
}

function parsed(value: unknown): unknown {
  if (typeof value !== "string") return value;
  try {
    return JSON.parse(value);
  } catch {
    return value;
  }
}

/** The form of an answer to this job. */
export function chatForm(job: Job): Form<ChatCompletion> {
  const { request: { logprobs: top, stream_options }, model: { tokenizer } } = job;
  const head = headOf(job, "chatcmpl", "chat.completion");
  const common = { ...head, object: "chat.completion.chunk" as const };
  const usage = stream_options?.include_usage ? { usage: null } : {};
  const logprobsOf = ({ tokens }: Delta) => top === undefined ? null : toLogprobs(tokenizer, tokens, top);
  const begun = new Set<number>();
  return {
    whole: (choices, usage) => ({
      ...head,
      choices: choices.map((delta) => ({
        index: delta.index,
        message: { role: "assistant" as const, content: delta.text, refusal: null },
        logprobs: logprobsOf(delta),
        finish_reason: delta.finish!,
      })),
      usage,
    }),
    *events(delta): Generator<ChatChunk> {
      const { index, text, tokens, finish } = delta;
      const chunk = (choice: Partial<ChatChunk["choices"][number]>): ChatChunk => ({
        ...common,
        choices: [{ index, delta: {}, logprobs: null, finish_reason: null, ...choice }],
        ...usage,
      });
      if (!begun.has(index)) yield chunk({ delta: { role: "assistant", content: "" } });
      begun.add(index);
      if (text !== "" || tokens.length > 0) yield chunk({ delta: { content: text }, logprobs: logprobsOf(delta) });
      if (finish !== null) yield chunk({ finish_reason: finish });
    },
    usage: (usage) => ({ ...common, choices: [], usage }),
  };
}

function toLogprobs(tokenizer: Tokenizer, tokens: readonly ShownToken[], top: number): TokenLogprobs {
  const shown = ({ token, logprob }: Pick<TokenLogprob, "token" | "logprob">) => ({
    token: tokenText(tokenizer, token),
    logprob: clamp(logprob),
    bytes: [...bytesOf(tokenizer, token)],
  });
  const content = tokens.map(({ logprob }) => ({
    ...shown(logprob!),
    top_logprobs: logprob!.top.slice(0, top).map(shown),
  }));
  return { content, refusal: null };
}
