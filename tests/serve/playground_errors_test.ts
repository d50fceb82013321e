/// <reference lib="dom" />
/** What the playground says, in a real browser, where the server refuses, fails or isn't ready. */
import assert from "node:assert/strict";
import type { ServedModel } from "../../serve/job.ts";
import { startServer } from "../../serve/server.ts";
import { testInBrowser } from "./browser.ts";
import { mockEngine } from "./mock_engine.ts";
import { button, generate, serve, written } from "./playground.ts";
import { bytes, saying } from "./serving.ts";

testInBrowser("errors are said in words, at the control that mends them", async (open) => {
  let next: Response | undefined;
  const refuse = (status: number, message: string, headers = {}, param: string | null = null) => {
    next = Response.json({ error: { message, type: "", param, code: null } }, { status, headers });
  };
  const instead = ({ url }: Request) => {
    const answer = url.endsWith("/completions") ? next : undefined;
    next = undefined;
    return answer;
  };
  let failing = false;
  await using served = await serve(
    { ...saying("Hello"), fail: (i) => failing && i === 2 ? new Error("x") : undefined },
    {
      instead,
    },
  );
  const page = await open(served.url);
  const said = async () => {
    await page.keyboard.press("Control+Enter");
    await page.waitForFunction(() => document.getElementById("error")?.textContent !== "");
    return await page.getByRole("alert").textContent();
  };
  const invalid = () => page.locator("[aria-invalid]").getAttribute("id");
  await page.getByLabel("Prompt").fill("x");
  refuse(429, "The queue is full", { "Retry-After": "12" });
  assert.match((await said())!, /Try again in 12 seconds/);
  refuse(503, "Wait: the model is being loaded", { "Retry-After": "1" });
  assert.match((await said())!, /model is being loaded\)\. Try again in 1 second\.$/);
  refuse(400, "Set top_k to less", {}, "top_k");
  assert.equal(await said(), "Set top_k to less.");
  assert.equal(await invalid(), "top_k");
  await page.getByLabel("Prompt").fill("x".repeat(256));
  assert.match((await said())!, /maximum context length is 256/);
  await page.getByLabel("Prompt").fill("x");
  failing = true;
  assert.match((await said())!, /^The server failed: The generation failed/);
  assert.equal(await written(page), "He");
  next = new Response("data: {}\n\n", { headers: { "content-type": "text/event-stream" } });
  assert.match((await said())!, /^The connection to the server is lost/);
  failing = false;
  await generate(page, "x");
  assert.equal(await page.getByRole("alert").textContent(), "");
});

testInBrowser("a server with keys asks for one, which the page forgets with its tab", async (open) => {
  await using served = await serve(saying("Hello"), { apiKeys: ["sk-right"] });
  const page = await open(served.url);
  const alert = (text: string) => page.getByRole("alert").filter({ hasText: text }).waitFor();
  await alert("The server asks for an API key");
  assert.equal(await page.locator(":focus").getAttribute("id"), "key");
  await page.keyboard.type("sk-wrong");
  await page.keyboard.press("Tab");
  await alert("The server doesn't take this API key");
  assert.equal(await page.locator("[aria-invalid]").getAttribute("id"), "key");
  await page.getByLabel("API key").fill("sk-right");
  await page.keyboard.press("Tab");
  await page.locator("option").first().waitFor({ state: "attached" });
  await generate(page, "x");
  assert.equal(await written(page), "Hello");
  assert.equal(await page.getByRole("alert").textContent(), "");
  await page.reload();
  assert.equal(await page.getByLabel("API key").inputValue(), "sk-right");
  const other = await page.context().newPage();
  await other.goto(served.url);
  assert.equal(await other.getByLabel("API key").inputValue(), "");
});

testInBrowser("a model without a chat template says so", async (open) => {
  await using served = await serve();
  const page = await open(served.url);
  await page.getByLabel("Chat").check();
  await page.getByLabel("Message", { exact: true }).fill("x");
  await button(page, "Send").click();
  await page.getByRole("alert").filter({ hasText: "--chat-template" }).waitFor();
});

testInBrowser("the page is there while the model is loaded, and finds it", async (open) => {
  const { promise: opened, resolve } = Promise.withResolvers<ServedModel & AsyncDisposable>();
  const engine = mockEngine();
  using probe = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = probe.addr;
  probe.close();
  const model = { name: "mock", open: () => opened };
  const starting = startServer({ hostname: "127.0.0.1", port, model });
  const page = await open(`http://127.0.0.1:${port}/`);
  await page.locator("#speed", { hasText: "the model is being loaded" }).waitFor();
  assert.equal(await page.getByRole("status").textContent(), "the model is being loaded");
  assert.ok(await button(page, "Generate").isDisabled());
  resolve({ name: "mock", engine, tokenizer: bytes, [Symbol.asyncDispose]: () => engine[Symbol.asyncDispose]() });
  await using _server = await starting;
  await page.locator("option").waitFor({ state: "attached" });
  assert.equal(await page.getByLabel("Model").inputValue(), "mock");
  await page.locator("#generate:enabled").waitFor();
  assert.equal(await page.locator("#speed").textContent(), "");
});
