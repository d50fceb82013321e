/** What tests of the playground share: a server on a port, the page's parts by name. */
import type { Page } from "playwright-core";
import { createApp } from "../../serve/app.ts";
import type { ServedModel } from "../../serve/job.ts";
import { createLog } from "../../serve/log.ts";
import { type MockEngine, mockEngine, type MockOptions } from "./mock_engine.ts";
import { bytes, saying } from "./serving.ts";

export interface Served extends AsyncDisposable {
  readonly url: string;
  readonly engine: MockEngine;
}

type Handler = (request: Request) => Response | Promise<Response> | undefined;

const log = createLog({ level: "off", format: "text" });

/** A server on a free port; `instead` may answer in the API's place. */
export async function serve(
  options: MockOptions = saying("Hello"),
  { instead, apiKeys, ...model }: Partial<ServedModel> & { instead?: Handler; apiKeys?: readonly string[] } = {},
): Promise<Served> {
  const engine = mockEngine(options);
  const app = await createApp({ model: { name: "org/mock", engine, tokenizer: bytes, ...model }, log, apiKeys });
  const answer = (request: Request) => instead?.(request) ?? app.fetch(request);
  const server = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen: () => {} }, answer);
  return {
    url: `http://127.0.0.1:${server.addr.port}/`,
    engine,
    async [Symbol.asyncDispose]() {
      await app[Symbol.asyncDispose]();
      await server.shutdown();
    },
  };
}

export const button = (page: Page, name: string) => page.getByRole("button", { name, exact: true });
export const tokens = (page: Page) => page.locator(".token");
export const written = (page: Page) => page.locator(".tokens").last().textContent();
export const tip = (page: Page) => page.getByRole("tooltip");

/** Types a prompt, generates, and waits for the end. */
export async function generate(page: Page, prompt: string): Promise<void> {
  await page.getByLabel("Prompt").fill(prompt);
  await button(page, "Generate").click();
  await page.locator("#speed", { hasText: / · at / }).waitFor();
}
