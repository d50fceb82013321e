/// <reference lib="dom" />
/** How the playground looks in a real browser, and to those who can't look: names and roles, contrast, themes, files. */
import assert from "node:assert/strict";
import { createApp } from "../../serve/app.ts";
import { checkAccessibility, testInBrowser } from "./browser.ts";
import { mockEngine } from "./mock_engine.ts";
import { button, generate, serve, tokens } from "./playground.ts";
import { bytes, saying, textTokens } from "./serving.ts";

/** Of a token's text with its strongest tint (WCAG 2.2, 1.4.3), which axe can't work out; runs in the page. */
function contrastWhenTinted(token: Element): number {
  (token as HTMLElement).style.setProperty("--surprise", "1");
  const canvas = document.createElement("canvas").getContext("2d")!;
  const paint = (color: string) => {
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    const [red, green, blue] = [...canvas.getImageData(0, 0, 1, 1).data].map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05;
  };
  paint(getComputedStyle(document.body).backgroundColor);
  const behind = paint(getComputedStyle(token).backgroundColor);
  const text = paint(getComputedStyle(token).color);
  return Math.max(behind, text) / Math.min(behind, text);
}

testInBrowser("names, roles and contrast hold in light and dark, on a phone and wide", async (open) => {
  await using served = await serve(saying("The night is dark\nand full of 😀"));
  for (const [colorScheme, width] of [["light", 360], ["dark", 1280]] as const) {
    const page = await open(served.url, { colorScheme, viewport: { width, height: 640 }, reducedMotion: "reduce" });
    if (width === 360) await page.locator("summary").click();
    await generate(page, "x");
    await tokens(page).nth(3).focus();
    await checkAccessibility(page);
    const contrast = await tokens(page).nth(3).evaluate(contrastWhenTinted);
    assert.ok(contrast >= 4.5, `a contrast of ${contrast} in ${colorScheme}`);
    const scrollable = await page.evaluate(() => document.documentElement.scrollWidth);
    assert.ok(scrollable <= width, `${scrollable} px wide in ${width}`);
  }
});

testInBrowser("the theme is the system's until another is chosen, which is kept", async (open) => {
  await using served = await serve();
  const page = await open(served.url, { colorScheme: "dark" });
  const background = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const dark = await background();
  await button(page, "Light colors").click();
  const light = await background();
  assert.notEqual(light, dark);
  await page.reload();
  assert.equal(await background(), light);
  await button(page, "Dark colors").click();
  assert.equal(await background(), dark);
  const tinted = () => tokens(page).nth(1).evaluate((element) => getComputedStyle(element).backgroundColor);
  await generate(page, "x");
  assert.notEqual(await tinted(), "rgba(0, 0, 0, 0)");
  await page.getByLabel("Tint by probability").click();
  assert.equal(await tinted(), "rgba(0, 0, 0, 0)");
});

testInBrowser("nothing moves while text comes", async (open) => {
  await using served = await serve({ ...saying("word ".repeat(40)), delay: 2 });
  const page = await open(served.url, { viewport: { width: 360, height: 900 } });
  await page.locator("summary").click();
  await page.getByLabel("Max tokens").fill("210");
  await page.locator("summary").click();
  await page.evaluate(() => {
    const moved: string[] = [];
    Object.assign(globalThis, { moved });
    new PerformanceObserver((list) => {
      for (const entry of list.getEntries() as (PerformanceEntry & { sources: { node: Node | null }[] })[]) {
        for (const { node } of entry.sources) {
          if (node && !document.getElementById("turns")!.contains(node)) moved.push(node.nodeName);
        }
      }
    }).observe({ type: "layout-shift" });
  });
  await generate(page, "x");
  assert.deepEqual(await page.evaluate(() => (globalThis as unknown as { moved: string[] }).moved), []);
});

testInBrowser("the end of a long answer stays in view, but for a reader who went back", async (open) => {
  await using served = await serve({ delay: 1, say: () => textTokens("word ".repeat(600)), contextLength: 4000 });
  const page = await open(served.url, { viewport: { width: 1000, height: 400 } });
  await page.getByLabel("Max tokens").fill("3000");
  await page.getByLabel("Prompt").fill("x");
  await button(page, "Generate").click();
  const output = page.locator("#output");
  const below = () => output.evaluate((element) => element.scrollHeight - element.scrollTop - element.clientHeight);
  await output.evaluate((element) => {
    return new Promise((resolve) => element.addEventListener("scroll", resolve, { once: true }));
  });
  await tokens(page).nth(450).waitFor();
  assert.ok(await below() < 100, "the end isn't in view");
  await output.evaluate((element) => element.scrollTop = 0);
  await tokens(page).nth(650).waitFor();
  assert.equal(await output.evaluate((element) => element.scrollTop), 0);
  await page.keyboard.press("Escape");
});

Deno.test("the page's files come with a strict policy, and once only", async () => {
  await using app = await createApp({ model: { name: "mock", engine: mockEngine(), tokenizer: bytes } });
  const page = await app.request("/");
  const html = await page.text();
  assert.doesNotMatch(html, /<script(?![^>]* src=)|<style| on\w+=| style=|https?:/);
  for (const [, path] of html.matchAll(/(?:src|href)="(page\/[^"]+)"/g)) {
    const file = await app.request(`/${path}`);
    assert.equal(file.status, 200);
    assert.equal(file.headers.get("X-Content-Type-Options"), "nosniff");
    assert.match(file.headers.get("Content-Security-Policy")!, /^default-src 'none'; script-src 'self'; /);
    assert.doesNotMatch(file.headers.get("Content-Security-Policy")!, /unsafe/);
    const again = await app.request(`/${path}`, { headers: { "If-None-Match": `W/${file.headers.get("ETag")}` } });
    assert.deepEqual([again.status, await again.text()], [304, ""]);
  }
  assert.equal((await app.request("/page/playground.ts")).status, 404);
  assert.equal((await app.request("/", { method: "POST" })).status, 405);
});
