/** What the server's tests share: an app over a mock engine with the byte tokenizer, requests without a port, events read back. */
import { type App, createApp } from "../../serve/app.ts";
import type { ServedModel } from "../../serve/job.ts";
import type { Completion } from "../../serve/protocol.ts";
import { loadTokenizer } from "../../model/tokenizer.ts";
import { type MockEngine, mockEngine, type MockOptions } from "./mock_engine.ts";

export const bytes = await loadTokenizer("bytes");
export const endOfText = 256;

export const textTokens = (text: string) => bytes.encode(text, { allowSpecial: true });

/** Makes the mock say a text whatever it is asked, then end of text. */
export const saying = (text: string): MockOptions => ({ say: () => [...textTokens(text), endOfText] });

export interface Mocked extends AsyncDisposable {
  readonly app: App;
  readonly engine: MockEngine;
}

export async function serveMock(options: MockOptions = {}, model: Partial<ServedModel> = {}): Promise<Mocked> {
  const engine = mockEngine(options);
  const app = await createApp({ model: { name: "mock", engine, tokenizer: bytes, ...model } });
  return { app, engine, [Symbol.asyncDispose]: () => app[Symbol.asyncDispose]() };
}

export function post(app: App, body: unknown, init: RequestInit = {}, path = "/v1/completions"): Promise<Response> {
  return Promise.resolve(app.request(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: typeof body === "string" ? body : JSON.stringify(body),
    ...init,
  }));
}

/** The whole answer to a request that must succeed. */
export async function complete(app: App, fields: Record<string, unknown>): Promise<Completion> {
  const response = await post(app, { model: "mock", ...fields });
  const body = await response.json();
  if (response.status !== 200) throw new Error(`${response.status}: ${JSON.stringify(body)}`);
  return body;
}

/** The `data:` of each event of a stream. */
export function readEvents(text: string): string[] {
  return text.split("\n\n").filter((event) => event !== "").map((event) => {
    if (!event.startsWith("data: ") || event.includes("\n")) throw new Error(`No event: ${JSON.stringify(event)}`);
    return event.slice(6);
  });
}

/** The events of a streamed answer, without the closing [DONE], which must be there. */
export async function stream(app: App, fields: Record<string, unknown>): Promise<Completion[]> {
  return await parseEvents(await post(app, { model: "mock", stream: true, ...fields }));
}

export async function parseEvents<T>(response: Response): Promise<T[]> {
  const events = readEvents(await response.text());
  if (events.pop() !== "[DONE]") throw new Error("The stream doesn't end in [DONE]");
  return events.map((event) => JSON.parse(event));
}

/** Waits until something is so; fails after two seconds. */
export async function until(isSo: () => boolean): Promise<void> {
  for (let turn = 0; turn < 400; turn++) {
    if (isSo()) return;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  throw new Error(`Waited two seconds in vain for ${isSo}`);
}
