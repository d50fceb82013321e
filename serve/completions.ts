/** Pieces of text in the form of OpenAI's completions. It knows no engine and no HTTP. */
import type { TokenLogprob } from "../model/generate.ts";
import type { Tokenizer } from "../model/tokenizer.ts";
import { type Form, headOf } from "./answer.ts";
import type { Job, Prompt } from "./job.ts";
import type { Choice, Completion, Logprobs, PromptLogprobs } from "./protocol.ts";
import type { Delta, ShownToken } from "./run.ts";
import { tokenText } from "./stream.ts";

/** OpenAI's stand-in for a log-probability of minus infinity, which JSON can't say. */
const leastLogprob = -9999;

export const clamp = (logprob: number) => Math.max(logprob, leastLogprob);

/** The form of an answer to this job. */
export function completionForm(job: Job): Form<Completion> {
  const { request, tasks, model: { tokenizer } } = job;
  const head = headOf(job, "cmpl", "text_completion");
  const common = { ...head, ...(request.stream_options?.include_usage ? { usage: null } : {}) };
  const top = request.prompt_logprobs;
  const whole = async (delta: Delta) => ({
    ...toChoice(job, delta),
    ...(top !== undefined && {
      prompt_logprobs: await promptLogprobs(tokenizer, tasks[delta.index].prompt, top),
    }),
  });
  return {
    whole: async (choices, usage) => ({ ...head, choices: await Promise.all(choices.map(whole)), usage }),
    events: (delta) => [{ ...common, choices: [toChoice(job, delta)] }],
    usage: (usage) => ({ ...head, choices: [], usage }),
  };
}

function toChoice({ model, request }: Job, { index, text, tokens, finish }: Delta): Choice {
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

/** Log-probabilities of a prompt's tokens, each with the `top` likeliest in its place. */
async function promptLogprobs(tokenizer: Tokenizer, prompt: Prompt, top: number): Promise<PromptLogprobs> {
  return (await prompt.scores()).map((entry) => {
    if (!entry) return null;
    const best = [...entry.top.slice(0, top), entry];
    return Object.fromEntries(
      best.map((one) => [one.token, { logprob: clamp(one.logprob), decoded_token: tokenText(tokenizer, one.token) }]),
    );
  });
}
