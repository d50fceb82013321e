/// <reference lib="dom" />
/** Chromium for tests of pages, where it is installed; elsewhere they are ignored and say so. Knows no page. */
import assert from "node:assert/strict";
import axe, { type AxeResults } from "axe-core";
import type { Browser, BrowserContextOptions, Page } from "playwright-core";

const PLACES = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];

function isThere(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}

const executablePath = PLACES.find(isThere);

/** Opens a page in a context of its own: storage and permissions are fresh. */
export type Open = (url: string, options?: BrowserContextOptions) => Promise<Page>;

let launched: Promise<Browser> | undefined;

async function start(): Promise<Browser> {
  Deno.env.set("__IS_WSL_TEST__", "1"); // else playwright-core reads under /proc as it is loaded, which Deno's --allow-read forbids
  const { chromium } = await import("playwright-core");
  // Root, as in containers, has no sandbox; /dev/shm may be too small there.
  return await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
}

Deno.test.afterAll(async () => {
  await (await launched)?.close();
});

/** A test in Chromium. It fails where a page throws or breaks its content security policy, whatever else it shows. */
export function testInBrowser(name: string, test: (open: Open) => Promise<void>): void {
  Deno.test({
    name: executablePath ? name : `${name} (ignored: no Chromium here; sudo apt-get install chromium)`,
    ignore: executablePath === undefined,
    sanitizeOps: false, // the browser outlives the test
    sanitizeResources: false,
    fn: async () => {
      const browser = await (launched ??= start());
      const faults: string[] = [];
      const contexts: AsyncDisposable[] = [];
      try {
        await test(async (url, options) => {
          const context = await browser.newContext(options);
          contexts.push(context);
          context.setDefaultTimeout(5000);
          const page = await context.newPage();
          page.on("pageerror", (error) => faults.push(error.stack ?? error.message));
          page.on("console", (message) => {
            const refusal = message.text().startsWith("Failed to load resource"); // a status code that the page handles
            if (message.type() === "error" && !refusal) faults.push(message.text());
          });
          await page.goto(url);
          return page;
        });
      } finally {
        for (const context of contexts) await context[Symbol.asyncDispose]();
      }
      assert.deepEqual(faults, []);
    },
  });
}

/** Checks names, roles and contrast of what is shown by axe's rules for WCAG 2.2 AA. */
export async function checkAccessibility(page: Page): Promise<void> {
  await page.evaluate(axe.source);
  const { violations } = await page.evaluate(async () => {
    const { axe } = globalThis as unknown as { axe: { run(options: object): Promise<AxeResults> } };
    return await axe.run({ runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] });
  });
  const said = violations.map(({ id, nodes }) =>
    `${id}: ${nodes.map(({ html, failureSummary }) => `${html} ${failureSummary}`).join("\n")}`
  );
  assert.deepEqual(said, []);
}
