/** `POST /v1/completions`: a request becomes a job, its pieces an answer or events. It knows no engine and makes no text. */
import { createRoute, type OpenAPIHono, z } from "@hono/zod-openapi";
import { promptLogprobs, toChoice, usageOf } from "./completions.ts";
import { RequestError } from "./errors.ts";
import { sendEvents } from "./events.ts";
import { type Job, prepare } from "./job.ts";
import type { Models } from "./models.ts";
import {
  checkRequest,
  type Completion,
  Completion as CompletionSchema,
  CompletionRequest,
  errors,
  json,
} from "./protocol.ts";
import { collect, generatedIn, run } from "./run.ts";

const completionsRoute = createRoute({
  method: "post",
  path: "/v1/completions",
  request: { body: { ...json(CompletionRequest, "What to go on from"), required: true } },
  responses: {
    200: {
      content: { "application/json": { schema: CompletionSchema }, "text/event-stream": { schema: z.string() } },
      description: "The completion; with `stream`, as events that end in `data: [DONE]`",
    },
    ...errors,
  },
});

/** Adds the route; `closing` is aborted when the app ends what runs. */
export function addCompletions(app: OpenAPIHono, models: Models, closing: AbortSignal): void {
  app.openapi(completionsRoute, async (c) => {
    const request = c.req.valid("json");
    checkRequest(request);
    const job = prepare(await models.get(request.model, "model"), request);
    const signal = AbortSignal.any([c.req.raw.signal, closing]);
    if (request.stream) return sendEvents(c, (hungUp) => events(job, AbortSignal.any([signal, hungUp]), closing));
    const completion = await answer(job, signal);
    if (closing.aborted) throw theEnd();
    return c.json(completion, 200);
  });
}

/** The fields that all events of an answer share. */
function head(job: Job): Omit<Completion, "choices" | "usage"> {
  return {
    id: `cmpl-${crypto.randomUUID().replaceAll("-", "")}`,
    object: "text_completion",
    created: Math.floor(Date.now() / 1000),
    model: job.model.name,
  };
}

async function answer(job: Job, signal: AbortSignal): Promise<Completion> {
  const deltas = await collect(job, signal);
  const top = job.request.prompt_logprobs;
  const choices = await Promise.all(deltas.map(async (delta) => {
    const choice = toChoice(job, delta);
    if (top === undefined || signal.aborted) return choice;
    return {
      ...choice,
      prompt_logprobs: await promptLogprobs(job.model.tokenizer, job.tasks[delta.index].prompt, top),
    };
  }));
  return { ...head(job), choices, usage: usageOf(job, generatedIn(deltas)) };
}

async function* events(job: Job, signal: AbortSignal, closing: AbortSignal): AsyncGenerator<Completion> {
  const { stream_options } = job.request;
  const common = { ...head(job), ...(stream_options?.include_usage ? { usage: null } : {}) };
  let total = 0;
  for await (const delta of run(job, signal)) {
    total += delta.generated;
    yield { ...common, choices: [toChoice(job, delta)] };
  }
  if (closing.aborted) throw theEnd();
  if (stream_options?.include_usage) yield { ...common, choices: [], usage: usageOf(job, total) };
}

const theEnd = () => new RequestError(503, "The server is closing", null, "model_unavailable");
