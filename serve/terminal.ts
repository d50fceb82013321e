/** A completion written to the terminal as it comes, and how fast it came. Knows no HTTP and no flags. */
import { UserError } from "../model/errors.ts";
import { RequestError } from "./errors.ts";
import { prepare, type ServedModel } from "./job.ts";
import { checkRequest, CompletionRequest, explain } from "./protocol.ts";
import { run } from "./run.ts";

/** What came of a generation. */
export interface Written {
  readonly text: string;
  readonly finish_reason: "stop" | "length" | null;
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  /** From the start to the first token, and to the last, in seconds. */
  readonly first_token_seconds: number;
  readonly seconds: number;
}

/** Tokens to generate where nobody says how many and the context has room. */
const usualTokens = 128;

/**
 * Generates a completion; `write` gets the text piece by piece. Ends early when the signal is aborted. `fields` are those of an API
 * request; without `max_tokens` at most 128 tokens are generated, or what the context holds.
 * Throws UserError (exit code 2) for a request that the API would refuse.
 */
export async function writeCompletion(
  model: ServedModel,
  fields: Readonly<Record<string, unknown>> & { readonly prompt: string },
  write: (text: string) => void,
  signal: AbortSignal,
): Promise<Written> {
  const start = performance.now();
  const since = () => (performance.now() - start) / 1000;
  const max_tokens = fields.max_tokens ?? Math.min(usualTokens, room(model, fields.prompt));
  const job = readable(() => prepare(model, toRequest({ ...fields, model: model.name, max_tokens })));
  let [text, generated, first] = ["", 0, 0];
  let finish: Written["finish_reason"] = null;
  for await (const delta of run(job, signal)) {
    if (generated === 0) first = since();
    generated += delta.generated;
    text += delta.text;
    finish = delta.finish;
    write(delta.text);
  }
  return {
    text,
    finish_reason: finish,
    prompt_tokens: job.promptTokens,
    completion_tokens: generated,
    first_token_seconds: first,
    seconds: since(),
  };
}

/** How many tokens the context holds after a prompt; at least one, so that too long a prompt is refused. */
function room({ engine, tokenizer }: ServedModel, prompt: string): number {
  return Math.max(1, engine.contextLength - Math.max(1, tokenizer.encode(prompt, { allowSpecial: true }).length));
}

function toRequest(fields: unknown): CompletionRequest {
  const parsed = CompletionRequest.safeParse(fields);
  if (!parsed.success) throw explain(parsed.error, fields);
  checkRequest(parsed.data);
  return parsed.data;
}

function readable<T>(act: () => T): T {
  try {
    return act();
  } catch (error) {
    throw error instanceof RequestError ? new UserError(error.message, 2) : error;
  }
}

/** One line on how fast it went: decoding, the first token apart. */
export function describeSpeed({ completion_tokens, first_token_seconds, seconds }: Written): string {
  const decoding = seconds - first_token_seconds;
  const rate = completion_tokens > 1 && decoding > 0
    ? `, then ${((completion_tokens - 1) / decoding).toFixed(1)} tokens/s`
    : "";
  return `${completion_tokens} tokens in ${seconds.toFixed(2)} s: the first after ${
    first_token_seconds.toFixed(2)
  } s${rate}`;
}
