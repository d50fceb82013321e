/** From messages to a prompt, by the model's own chat template. The only file that knows Jinja; it knows no HTTP and no engine. */
import { Template } from "@huggingface/jinja";
import { join } from "node:path";
import { UserError } from "../model/errors.ts";
import { exists, explainIo } from "../model/files.ts";
import { RequestError } from "./errors.ts";

/** A message as templates see it. */
export type Message = Readonly<Record<string, unknown>> & { readonly role: string; readonly content: string | null };

export interface RenderOptions {
  readonly tools?: readonly unknown[];
  /** Ends with the beginning of an answer. */
  readonly addGenerationPrompt: boolean;
  /** Ends within the last message, which is to be gone on with. */
  readonly continueFinalMessage: boolean;
  /** Further names for the template. */
  readonly more?: Readonly<Record<string, unknown>>;
}

/** How a model wants a conversation written. */
export interface Chat {
  /** Texts that end an answer, besides the model's stop tokens. */
  readonly stops: readonly string[];
  /** @throws RequestError with 400 for what the template refuses. */
  render(messages: readonly Message[], options: RenderOptions): string;
}

/** OpenAI's chat markup language, as most open chat models have it: a header with the role, the text, an end mark. */
const CHATML =
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}" +
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
const CHATML_END = "<|im_end|>";

/** The name of the template that any model can be given. */
export const CHATML_NAME = "chatml";

/** Templates of a model: one, or one of each name, of which `tool_use` is for requests with tools. */
interface Templates {
  readonly default: string;
  readonly tool_use?: string;
}

/**
 * Reads a model folder's chat template, or the one given in its place.
 *
 * @param config the content of tokenizer_config.json.
 * @param given a Jinja file, or `chatml`.
 * @returns undefined for a model without one.
 * @throws UserError for a file that can't be read or a template that can't be parsed.
 */
export async function readChat(
  folder: string,
  config: Readonly<Record<string, unknown>>,
  given?: string,
): Promise<Chat | undefined> {
  if (given === CHATML_NAME) return createChat({ default: CHATML }, config, CHATML_NAME, [CHATML_END]);
  if (given !== undefined) return createChat({ default: await read(given) }, config, given);
  const beside = join(folder, "chat_template.jinja");
  if (await exists(beside)) return createChat({ default: await read(beside) }, config, beside);
  const path = join(folder, "tokenizer_config.json");
  const templates = templatesOf(config.chat_template, path);
  return templates && createChat(templates, config, path);
}

async function read(path: string): Promise<string> {
  try {
    return await Deno.readTextFile(path);
  } catch (error) {
    throw explainIo("read chat template", path, error);
  }
}

/** A text, or a list of named ones (Hugging Face's tokenizer_config.json has both forms). */
function templatesOf(value: unknown, path: string): Templates | undefined {
  if (value == null) return undefined;
  if (typeof value === "string") return { default: value };
  const named = Array.isArray(value)
    ? Object.fromEntries(value.map((entry) => [entry?.name, entry?.template]))
    : undefined;
  if (typeof named?.default === "string") return named as unknown as Templates;
  throw new UserError(
    `Cannot use chat_template in ${path}: want a text or a list of names and templates with a default`,
  );
}

function parse(text: string, path: string): Template {
  try {
    return new Template(text);
  } catch (error) {
    throw new UserError(`Cannot parse chat template ${path}: ${oneLine(error)}`);
  }
}

const oneLine = (error: unknown) =>
  (error instanceof Error ? error.message : String(error)).replace(/\s+/g, " ").slice(0, 300);

function createChat(
  texts: Templates,
  config: Readonly<Record<string, unknown>>,
  path: string,
  stops: readonly string[] = [],
): Chat {
  const usual = parse(texts.default, path);
  const withTools = typeof texts.tool_use === "string" ? parse(texts.tool_use, path) : usual;
  const marks = markTokens(config);
  return {
    stops,
    render(messages, { tools, addGenerationPrompt, continueFinalMessage, more }) {
      const names = {
        ...marks,
        messages,
        tools: tools ?? null,
        documents: null,
        add_generation_prompt: addGenerationPrompt,
        ...more,
      };
      let text: string;
      try {
        text = (tools ? withTools : usual).render(names);
      } catch (error) {
        throw new RequestError(
          400,
          `Change the messages: the model's chat template refuses them (${oneLine(error)})`,
          "messages",
        );
      }
      return continueFinalMessage ? cutAfterLast(text, messages) : text;
    },
  };
}

/** `bos_token` and its like, each a text or an object with one. */
function markTokens(config: Readonly<Record<string, unknown>>): Record<string, string> {
  const marks: Record<string, string> = {};
  for (const [name, value] of Object.entries(config)) {
    if (!name.endsWith("_token")) continue;
    const text = typeof value === "string" ? value : (value as { content?: unknown } | null)?.content;
    if (typeof text === "string") marks[name] = text;
  }
  return marks;
}

/** Leaves out what the template writes after the last message's text. */
function cutAfterLast(text: string, messages: readonly Message[]): string {
  const last = messages.at(-1)!.content ?? "";
  const found = [last, last.trim()].find((content) => text.includes(content)) ?? "";
  if (found === "") {
    throw new RequestError(
      400,
      "Give the last message a text that the template keeps, to go on with",
      "continue_final_message",
    );
  }
  return text.slice(0, text.lastIndexOf(found) + found.length);
}
