/** A server in a process of its own, and a client that times each token of a stream. It knows no bench. */
import { fileURLToPath } from "node:url";
import { EventSourceParserStream } from "eventsource-parser/stream";
import { TextLineStream } from "../model/lines.ts";

export interface Served extends AsyncDisposable {
  readonly url: string;
  /** Of the process, in bytes; undefined where nothing tells. */
  memory(): Promise<number | undefined>;
}

/** Starts `deno task serve` for a model folder; resolves when it answers. */
export async function openServer(folder: string, more: readonly string[] = []): Promise<Served> {
  const script = fileURLToPath(new URL("../serve/main.ts", import.meta.url));
  const permissions = ["--allow-read", "--allow-net", "--allow-env", "--allow-ffi"];
  const process = new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-prompt", ...permissions, script, "serve", "--model", `bench=${folder}`, "--port", "0", ...more],
    stdout: "piped",
    stderr: "inherit",
    env: { NO_COLOR: "1", WGPT_LOG_LEVEL: "error" },
  }).spawn();
  const lines = process.stdout.pipeThrough(new TextDecoderStream()).pipeThrough(new TextLineStream()).getReader();
  for (;;) {
    const { value, done } = await lines.read();
    if (done) throw new Error(`The server ended with code ${(await process.status).code}`);
    const url = /http:\/\/[\d.]+:\d+/.exec(value)?.[0];
    if (url === undefined) continue;
    (async () => {
      while (!(await lines.read()).done);
    })();
    return {
      url,
      memory: () => residentBytes(process.pid),
      async [Symbol.asyncDispose]() {
        process.kill("SIGTERM");
        await process.status;
      },
    };
  }
}

/** Memory that a process holds, where there is a `ps`: Deno keeps /proc to those who may do everything. */
async function residentBytes(pid: number): Promise<number | undefined> {
  const ps = new Deno.Command("ps", { args: ["-o", "rss=", "-p", String(pid)], stderr: "null" });
  const kilobytes = await ps.output().then(({ stdout }) => Number(new TextDecoder().decode(stdout)), () => 0);
  return kilobytes > 0 ? kilobytes * 1024 : undefined;
}

/** When tokens of a stream came, in milliseconds after it was asked for. */
export interface Timed {
  readonly start: number;
  readonly at: readonly number[];
}

export interface Ask {
  readonly prompt: readonly number[];
  readonly tokens: number;
  readonly seed: number;
  readonly signal?: AbortSignal;
  /** Told of each token as it comes. */
  readonly onToken?: () => void;
}

/** Streams a completion of exactly so many tokens, unless aborted. Throws what the server says is wrong. */
export async function timeStream(url: string, { prompt, tokens, seed, signal, onToken }: Ask): Promise<Timed> {
  const start = performance.now();
  const at: number[] = [];
  const sampling = { temperature: 0.8, top_p: 0.95, ignore_eos: true, logprobs: 0 };
  const body = JSON.stringify({ model: "bench", prompt, max_tokens: tokens, seed, stream: true, ...sampling });
  const headers = { "content-type": "application/json" };
  const response = await fetch(`${url}/v1/completions`, { method: "POST", headers, body, signal });
  if (!response.ok) throw new Error(`${response.status}: ${await response.text()}`);
  const events = response.body!.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream());
  for await (const { data } of events) {
    if (data === "[DONE]") break;
    const { choices, error } = JSON.parse(data);
    if (error) throw new Error(error.message);
    for (const _ of choices[0].logprobs?.tokens ?? []) {
      at.push(performance.now() - start);
      onToken?.();
    }
  }
  return { start, at };
}
