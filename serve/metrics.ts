/** What Prometheus is told: requests, tokens, times, and what each engine is doing. It knows no route. */
import { Counter, Gauge, Histogram, type Metric, Registry } from "prom-client";
import type { Engine, EngineStats } from "../model/generate.ts";
import type { Models } from "./models.ts";
import type { Job } from "./job.ts";
import type { RequestRecord } from "./record.ts";

const SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600];

/** A gauge or counter that an engine keeps. */
interface Kept {
  readonly name: string;
  readonly help: string;
  readonly type: "gauge" | "counter";
  value(stats: EngineStats): number;
}

const KEPT: readonly Kept[] = [
  { name: "wgpt_sequences_running", help: "Sequences that share steps", type: "gauge", value: (s) => s.running },
  { name: "wgpt_sequences_waiting", help: "Sequences in the queue", type: "gauge", value: (s) => s.waiting },
  { name: "wgpt_kv_blocks", help: "Blocks of the key/value cache", type: "gauge", value: (s) => s.blocks },
  {
    name: "wgpt_kv_blocks_used",
    help: "Blocks that sequences hold",
    type: "gauge",
    value: (s) => s.blocks - s.freeBlocks,
  },
  {
    name: "wgpt_prefix_tokens_reused_total",
    help: "Tokens that were not computed because others had the same beginning",
    type: "counter",
    value: (s) => s.reusedTokens,
  },
  {
    name: "wgpt_preemptions_total",
    help: "Sequences that gave way for want of blocks",
    type: "counter",
    value: (s) => s.preemptions,
  },
  {
    name: "wgpt_engine_restarts_total",
    help: "How often an engine was opened again after a failure",
    type: "counter",
    value: (s) => s.restarts ?? 0,
  },
];

/** Metrics of one app, in a registry of its own. */
export class Metrics {
  readonly registry = new Registry();
  readonly #requests = new Counter({
    name: "wgpt_requests_total",
    help: "Requests that ended, by method, path of the API and status; cancelled and failed ones had begun to answer",
    labelNames: ["method", "path", "outcome"] as const,
    registers: [this.registry],
  });
  readonly #requestSeconds = this.#times(
    "wgpt_request_seconds",
    "Time from a request to the end of its answer",
    "path",
  );
  readonly #firstToken = this.#times(
    "wgpt_time_to_first_token_seconds",
    "Time from asking the engine to the first token",
    "model",
  );
  readonly #perToken = this.#times(
    "wgpt_time_per_output_token_seconds",
    "Time between tokens of a text, a mean for each",
    "model",
  );
  readonly #promptTokens = this.#tokens("wgpt_prompt_tokens_total", "Tokens of prompts");
  readonly #generatedTokens = this.#tokens("wgpt_generated_tokens_total", "Tokens generated");

  /** @param underWay how many requests are. */
  constructor(readonly models: Models, underWay: () => number) {
    const registers = [this.registry];
    new Gauge({
      name: "wgpt_requests_under_way",
      help: "Requests whose answer has not ended",
      registers,
      collect() {
        this.set(underWay());
      },
    });
    for (const kept of KEPT) this.registry.registerMetric(this.#kept(kept));
    this.registry.registerMetric(this.#stepRows());
  }

  /** The text that Prometheus reads. */
  async text(): Promise<string> {
    return await this.registry.metrics();
  }

  /** Counts a request that has ended. What isn't the API's is called OTHER, so that nobody can make more labels. */
  ended(record: RequestRecord, { method, path }: { readonly method: string; readonly path: string }): void {
    this.#requests.inc({ method, path, outcome: record.outcome });
    this.#requestSeconds.observe({ path }, record.seconds);
    if (record.model === undefined) return;
    this.#promptTokens.inc({ model: record.model }, record.promptTokens);
    this.#generatedTokens.inc({ model: record.model }, record.completionTokens);
  }

  /** The same job, its tokens timed as the engine yields them. */
  timed(job: Job): Job {
    const { name, tokenizer, stopTokens, chat, engine } = job.model;
    return { ...job, model: { name, tokenizer, stopTokens, chat, engine: this.#timedEngine(engine, name) } };
  }

  #timedEngine(engine: Engine, model: string): Engine {
    const [firstToken, perToken] = [this.#firstToken, this.#perToken];
    return {
      contextLength: engine.contextLength,
      vocabSize: engine.vocabSize,
      score: (tokens, top) => engine.score(tokens, top),
      async *generate(prompt, sampling, signal) {
        const start = performance.now();
        let [first, last, count] = [0, 0, 0];
        try {
          for await (const token of engine.generate(prompt, sampling, signal)) {
            last = performance.now();
            if (count++ === 0) firstToken.observe({ model }, ((first = last) - start) / 1000);
            yield token;
          }
        } finally {
          if (count > 1) perToken.observe({ model }, (last - first) / 1000 / (count - 1));
        }
      },
      [Symbol.asyncDispose]: () => engine[Symbol.asyncDispose](),
    };
  }

  #times<L extends string>(name: string, help: string, label: L): Histogram<L> {
    return new Histogram({ name, help, labelNames: [label], buckets: SECONDS, registers: [this.registry] });
  }

  #tokens(name: string, help: string): Counter<"model"> {
    return new Counter({ name, help, labelNames: ["model"], registers: [this.registry] });
  }

  #stats(): { model: string; stats: EngineStats }[] {
    return this.models.open.flatMap(({ name, engine }) => engine.stats ? [{ model: name, stats: engine.stats }] : []);
  }

  #kept({ name, help, type, value }: Kept): Metric {
    const values = () => this.#stats().map(({ model, stats }) => ({ labels: { model }, value: value(stats) }));
    return collected({ name, help, type }, values);
  }

  /** Rows of each step, as a histogram that the engine keeps: bucket i holds steps of at most 2^i rows. */
  #stepRows(): Metric {
    const name = "wgpt_step_rows";
    return collected(
      { name, help: "Rows of a step: tokens of prompts and chosen ones", type: "histogram" },
      () =>
        this.#stats().flatMap(({ model, stats: { stepSizes, steps, rows } }) => {
          let sum = 0;
          const buckets = stepSizes.map((count, i) => ({
            metricName: `${name}_bucket`,
            labels: { model, le: String(2 ** i) },
            value: sum += count,
          }));
          const end = { metricName: `${name}_bucket`, labels: { model, le: "+Inf" }, value: steps };
          const total = { metricName: `${name}_sum`, labels: { model }, value: rows };
          return [...buckets, end, total, { metricName: `${name}_count`, labels: { model }, value: steps }];
        }),
    );
  }
}

/** Stands for methods and paths that are none of the API's. */
export const OTHER = "other";

interface Description {
  readonly name: string;
  readonly help: string;
  readonly type: "gauge" | "counter" | "histogram";
}

/** A metric whose values somebody else keeps. */
function collected(description: Description, values: () => readonly unknown[]): Metric {
  const get = () => Promise.resolve({ ...description, values: values(), aggregator: "sum" });
  return { ...description, get, reset: () => {} } as unknown as Metric;
}
