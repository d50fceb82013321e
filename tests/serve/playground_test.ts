/// <reference lib="dom" />
/** The playground in a real browser: it streams, shows probabilities, goes on, stops, copies. */
import assert from "node:assert/strict";
import type { Locator } from "playwright-core";
import { readChat } from "../../serve/chat.ts";
import { checkAccessibility, testInBrowser } from "./browser.ts";
import { mockLogprob } from "./mock_engine.ts";
import { button, generate, serve, tip, tokens, written } from "./playground.ts";
import { bytes, saying, textTokens, until } from "./serving.ts";

const described = (token: Locator) => token.getAttribute("aria-describedby");

testInBrowser("a prompt is gone on with, as the settings say, and once more from its end", async (open) => {
  await using served = await serve(saying("Hello, world"));
  const page = await open(served.url);
  await page.getByLabel("Temperature").fill("0.5");
  await page.getByLabel("Top p").fill("0.9");
  await page.getByLabel("Min p").fill("0.1");
  await page.getByLabel("Repetition penalty").fill("1.2");
  await page.getByLabel("Top k").fill("40");
  await page.getByLabel("Max tokens").fill("99");
  await page.getByLabel("Seed").fill("7");
  await page.getByLabel("Stop texts").fill("\\n\\n\nEND");
  await generate(page, "Say it.");
  assert.equal(await written(page), "Hello, world");
  const [call] = served.engine.calls;
  assert.equal(bytes.decode(call.prompt), "Say it.");
  const { temperature, topP, minP, topK, maxTokens, seed, repetitionPenalty, logprobs } = call.sampling;
  assert.deepEqual([temperature, topP, minP, topK, maxTokens, seed], [0.5, 0.9, 0.1, 40, 99, 7]);
  assert.deepEqual([repetitionPenalty, logprobs], [1.2, 5]);
  assert.match(
    (await page.locator("#speed").textContent())!,
    /^12 tokens · [\d.]+ tokens\/s · first after \d\.\d\d s · at its end$/,
  );
  assert.match((await page.getByRole("status").textContent())!, /at its end\. Hello, world$/);
  await page.keyboard.press("Control+Shift+Enter");
  await until(() => served.engine.calls.length === 2);
  assert.equal(bytes.decode(served.engine.calls[1].prompt), "Say it.Hello, world");
  await page.waitForFunction(() => document.querySelector(".tokens")?.textContent === "Hello, worldHello, world");
  await page.reload();
  assert.equal(await page.getByLabel("Prompt").inputValue(), "Say it.");
  assert.equal(await page.getByLabel("Max tokens").inputValue(), "99");
});

testInBrowser("the pointer and the keys reach a token and what else it could have been", async (open) => {
  await using served = await serve(saying("Hello\nyou"));
  const page = await open(served.url);
  await generate(page, "x");
  const third = tokens(page).nth(2);
  await third.hover();
  await tip(page).waitFor();
  const { logprob, top } = mockLogprob(textTokens("l")[0], 3, 5, 257);
  const percents = [logprob, ...top.map((one) => one.logprob)].map((p) => `${(100 * Math.exp(p)).toFixed(2)} %`);
  const rows = await tip(page).locator(".row[data-label]").allTextContents();
  assert.deepEqual(rows, ["l", "m", "n", "o", "p", "q"].map((letter, i) => `${i + 1}${letter}${percents[i]}`));
  assert.equal(await described(third), "tip");
  await page.mouse.move(2, 2);
  await tip(page).waitFor({ state: "hidden" });
  assert.equal(await described(third), null);

  await page.getByLabel("Generated text").locator('[tabindex="0"]').focus();
  assert.equal(await described(tokens(page).nth(0)), "tip");
  for (const key of ["End", "ArrowLeft", "ArrowUp", "ArrowLeft"]) await page.keyboard.press(key);
  assert.equal(await page.locator(":focus").textContent(), "H");
  await page.keyboard.press("ArrowDown");
  assert.equal(await page.locator(":focus").textContent(), "y");
  assert.equal(await tokens(page).and(page.locator('[tabindex="0"]')).count(), 1);
  await page.keyboard.press("Escape");
  await tip(page).waitFor({ state: "hidden" });
});

testInBrowser("an alternative is taken and gone on from, by key and by pointer", async (open) => {
  await using served = await serve(saying("abc"));
  const page = await open(served.url);
  await generate(page, "x");
  await tokens(page).nth(1).focus();
  await page.keyboard.press("3"); // b, c, d
  await page.waitForFunction(() => document.querySelector(".tokens")?.textContent === "adabc");
  assert.equal(bytes.decode(served.engine.calls[1].prompt), "xad");
  await tokens(page).nth(0).hover();
  await tip(page).locator(".row", { hasText: "2b" }).click();
  await page.waitForFunction(() => document.querySelector(".tokens")?.textContent === "babc");
  assert.equal(bytes.decode(served.engine.calls[2].prompt), "xb");
  await tokens(page).nth(2).focus();
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelector(".tokens")?.textContent === "bababc");
  assert.equal(bytes.decode(served.engine.calls[3].prompt), "xbab");
});

testInBrowser("stop ends the generation, by button and by Escape", async (open) => {
  await using served = await serve({ delay: 5 });
  const page = await open(served.url);
  await page.getByLabel("Prompt").fill("A");
  for (const [i, stop] of [() => button(page, "Stop").click(), () => page.keyboard.press("Escape")].entries()) {
    await page.keyboard.press("Control+Enter");
    await tokens(page).nth(4).waitFor();
    await stop();
    await until(() => served.engine.calls[i].aborted);
    await page.locator("#speed", { hasText: "stopped" }).waitFor();
    assert.ok(served.engine.calls[i].yielded < 100);
    assert.ok(await button(page, "Stop").isDisabled());
  }
});

testInBrowser("characters of several tokens show whole, their parts as marks", async (open) => {
  await using served = await serve(saying("né 😀\n!"));
  const page = await open(served.url);
  await generate(page, "x");
  assert.equal(await written(page), "né 😀\n!");
  assert.deepEqual(await tokens(page).allTextContents(), ["n", "", "é", " ", "", "", "", "😀", "\n", "!"]);
  await tokens(page).nth(5).hover();
  await tip(page).waitFor();
  assert.equal(await tip(page).locator(".taken .word").textContent(), "9F");
  assert.equal(await tokens(page).nth(5).evaluate((element) => element.getBoundingClientRect().width > 3), true);
});

testInBrowser("what a model says is text, never markup", async (open) => {
  const hostile = `<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>&lt;`;
  await using served = await serve(saying(hostile), { name: "<b>model</b>" });
  const page = await open(served.url);
  await page.getByLabel("Max tokens").fill("120");
  await generate(page, hostile);
  assert.equal(await written(page), hostile);
  for (const i of [0, 5]) await tokens(page).nth(i).hover();
  assert.equal(await page.locator(".tokens img, .tokens script, #tip img, option b").count(), 0);
  assert.equal(await page.title(), "wgpt playground");
});

testInBrowser("the copied command asks for the same, without the key", async (open) => {
  await using served = await serve(saying("It's 5 > 4 \\ $HOME `id`"));
  const page = await open(served.url, { permissions: ["clipboard-read", "clipboard-write"] });
  await page.getByLabel("API key").fill("sk-secret");
  await page.getByLabel("Seed").fill("3");
  await generate(page, 'Don\'t say "no" $HOME `id` \\ !!\n\\n é');
  await button(page, "Copy as curl").click();
  await button(page, "Copied").waitFor();
  const command = await page.evaluate(() => navigator.clipboard.readText());
  assert.doesNotMatch(command, /sk-secret/);
  const { stdout } = await new Deno.Command("sh", { args: ["-c", command], env: { WGPT_API_KEY: "sk-secret" } })
    .output();
  const [asked, again] = served.engine.calls;
  assert.deepEqual(again.prompt, asked.prompt);
  assert.deepEqual({ ...again.sampling, logprobs: 5 }, asked.sampling);
  const events = new TextDecoder().decode(stdout).split("\n\n").filter((line) => /^data: \{/.test(line));
  const text = events.map((line) => JSON.parse(line.slice(6)).choices[0].text).join("");
  assert.equal(text, await written(page));
  const kept = await page.evaluate(() => JSON.stringify([localStorage, sessionStorage]));
  await page.evaluate(() => Object.defineProperty(navigator, "clipboard", { value: undefined })); // as over plain HTTP
  await button(page, "Copy as curl").click();
  assert.equal(await page.getByRole("dialog").getByRole("textbox").inputValue(), command);
  assert.match(kept, /^\[(?!.*sk-secret.*\{).*sk-secret/);
});

testInBrowser("where the context has less room than is asked for, it is filled", async (open) => {
  const chat = (await readChat("", {}, "chatml"))!;
  await using served = await serve({}, { chat });
  const page = await open(served.url);
  await page.getByLabel("Max tokens").fill("500");
  await generate(page, "A".repeat(250));
  assert.equal(await written(page), "BCDEFG");
  assert.match((await page.locator("#speed").textContent())!, /^6 tokens .* at the end of the model's context$/);
  await page.getByLabel("Chat").check();
  await page.getByLabel("Message", { exact: true }).fill("A".repeat(200));
  await button(page, "Send").click();
  await page.locator("#speed", { hasText: "at the end of the model's context" }).waitFor();
  assert.equal((served.engine.calls[1].prompt.length) + served.engine.calls[1].yielded, 256);
});

testInBrowser("a conversation is held, gone on with and taken back where it fails", async (open) => {
  const chat = (await readChat("", {}, "chatml"))!;
  await using served = await serve({ ...saying("né 😀"), contextLength: 1024 }, { chat });
  const page = await open(served.url);
  const message = page.getByLabel("Message", { exact: true });
  const prompt = (call: number) => bytes.decode(served.engine.calls[call].prompt);
  await page.getByLabel("Chat").check();
  await page.getByLabel("System message").fill("Be brief.");
  for (const text of ["Hello", "Again"]) {
    await message.fill(text);
    await button(page, "Send").click();
    await page.locator(".said", { hasText: text }).waitFor();
    await page.locator("#speed", { hasText: "at its end" }).waitFor();
    assert.equal(await message.inputValue(), "");
  }
  assert.equal(await written(page), "né 😀");
  const last = page.locator(".tokens").last().locator(".token");
  assert.deepEqual(await last.allTextContents(), ["n", "", "é", " ", "", "", "", "😀"]);
  const turn = (role: string, text: string) => `<|im_start|>${role}\n${text}<|im_end|>\n`;
  const first = turn("system", "Be brief.") + turn("user", "Hello");
  const second = turn("assistant", "né 😀") + turn("user", "Again");
  assert.equal(prompt(1), `${first}${second}<|im_start|>assistant\n`);
  await button(page, "Continue").click();
  await until(() => served.engine.calls.length === 3);
  assert.equal(prompt(2), `${first}${second}<|im_start|>assistant\nné 😀`);
  await page.locator("#speed", { hasText: "at its end" }).waitFor();
  await page.locator(".token").first().focus();
  await page.keyboard.press("2"); // in the first answer: what came after it is forgotten
  await until(() => served.engine.calls.length === 4);
  assert.equal(prompt(3), `${first}<|im_start|>assistant\no`);
  await page.locator("#speed", { hasText: "at its end" }).waitFor();
  await message.fill("x".repeat(1024));
  await page.keyboard.press("Control+Enter");
  await page.getByRole("alert").filter({ hasText: "maximum context length" }).waitFor();
  assert.equal(await message.inputValue(), "x".repeat(1024));
  assert.equal(await page.locator(".said").count(), 1);
  await checkAccessibility(page);
  await button(page, "Clear").click();
  assert.equal(await page.locator("#turns").textContent(), "");
});
