/** Pieces of text in the form of OpenAI's completions. It knows no engine and no HTTP. */
import type { TokenLogprob } from "../model/generate.ts";
import type { Tokenizer } from "../model/tokenizer.ts";
import type { Job, Prompt } from "./job.ts";
import type { Choice, Logprobs, PromptLogprobs, Usage } from "./protocol.ts";
import type { Delta, ShownToken } from "./run.ts";
import { tokenText } from "./stream.ts";

/** OpenAI's stand-in for a log-probability of minus infinity, which JSON can't say. */
const leastLogprob = -9999;

export const clamp = (logprob: number) => Math.max(logprob, leastLogprob);

export function toChoice({ model, request }: Job, { index, text, tokens, finish }: Delta): Choice {
  const logprobs = request.logprobs === undefined ? null : toLogprobs(model.tokenizer, tokens, request.logprobs);
  return { text, index, logprobs, finish_reason: finish };
}

function toLogprobs(tokenizer: Tokenizer, tokens: readonly ShownToken[], top: number): Logprobs {
  const best = (entry: TokenLogprob) => [...entry.top.slice(0, top), entry];
  return {
    tokens: tokens.map(({ id }) => tokenText(tokenizer, id)),
    token_logprobs: tokens.map(({ logprob }) => logprob && clamp(logprob.logprob)),
    top_logprobs: tokens.map(({ logprob }) =>
      logprob && Object.fromEntries(best(logprob).map((one) => [tokenText(tokenizer, one.token), clamp(one.logprob)]))
    ),
    text_offset: tokens.map(({ offset }) => offset),
  };
}

/** What the tokens of a job and its answer come to. */
export function usageOf(job: Job, generated: number): Usage {
  return { prompt_tokens: job.promptTokens, completion_tokens: generated, total_tokens: job.promptTokens + generated };
}

/** Log-probabilities of a prompt's tokens, each with the `top` likeliest in its place. */
export async function promptLogprobs(tokenizer: Tokenizer, prompt: Prompt, top: number): Promise<PromptLogprobs> {
  return (await prompt.scores()).map((entry) => {
    if (!entry) return null;
    const best = [...entry.top.slice(0, top), entry];
    return Object.fromEntries(
      best.map((one) => [one.token, { logprob: clamp(one.logprob), decoded_token: tokenText(tokenizer, one.token) }]),
    );
  });
}
