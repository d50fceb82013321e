/// <reference lib="dom" />
/** The dashboard in Chromium: curves as drawn pixels, lines that arrive live, several runs, light and dark, by key and by ear. */
import assert from "node:assert/strict";
import { join } from "node:path";
import type { Page } from "playwright-core";
import { createDashboard, ShownRuns } from "../../serve/dashboard.ts";
import { checkAccessibility, testInBrowser } from "./browser.ts";
import { append, makeRun, records, replaceMetrics, STEPS, update } from "./run_folder.ts";

interface Served extends AsyncDisposable {
  readonly url: string;
  readonly root: string;
}

/** A dashboard on a free port for runs of these names in a temporary folder. */
async function serve(...names: readonly string[]): Promise<Served> {
  const root = await Deno.makeTempDir();
  const closing = new AbortController();
  const app = createDashboard(new ShownRuns(names.map((name) => join(root, name))), closing.signal, { every: 50 });
  const server = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen: () => {} }, app.fetch);
  return {
    url: `http://127.0.0.1:${server.addr.port}/`,
    root,
    async [Symbol.asyncDispose]() {
      closing.abort();
      await server.shutdown();
      await Deno.remove(root, { recursive: true });
    },
  };
}

const summary = (page: Page, chart: string, text: string | RegExp) =>
  page.locator(`#chart-${chart} .summary`, { hasText: text }).waitFor();

/** How many pixels of a chart have this color, but for rounding. */
function painted(page: Page, chart: string, [r, g, b]: readonly number[]): Promise<number> {
  return page.evaluate(({ chart, r, g, b }) => {
    const canvas = document.querySelector<HTMLCanvasElement>(`#chart-${chart} canvas`)!;
    const { data } = canvas.getContext("2d")!.getImageData(0, 0, canvas.width, canvas.height);
    let count = 0;
    for (let i = 0; i < data.length; i += 4) {
      const distance = Math.abs(data[i] - r) + Math.abs(data[i + 1] - g) + Math.abs(data[i + 2] - b);
      if (data[i + 3] > 250 && distance < 6) count++;
    }
    return count;
  }, { chart, r, g, b });
}

const BLUE = [0x2f, 0x60, 0x9f];
const LIGHT_BLUE = [0x8d, 0xb6, 0xea];
const BROWN = [0xb8, 0x58, 0x1a];
const CHARTS = ["loss", "gradNorm", "learningRate", "tokensPerSecond", "memory"];

testInBrowser("a finished run shows its curves, its state, its samples and its settings", async (open) => {
  await using served = await serve("one");
  await makeRun(join(served.root, "one"), { sample: "<b>The people</b> & the land" });
  const page = await open(served.url);
  await summary(page, "loss", "one: 4.1 at update 40, from 4.1 to 8; one held-out: 4.2 at update 40, from 4.2 to 4.5");
  await summary(page, "memory", "one: 50 MB at update 40");
  const row = page.getByRole("listitem");
  assert.match(await row.innerText(), /one\s+finished\s+update 40 of 40\s+loss 4\.1000 · held-out 4\.2000/);
  for (const chart of CHARTS) assert.ok(await painted(page, chart, BLUE) > 100, chart);
  assert.equal(await page.locator("#samples article p").first().textContent(), "<b>The people</b> & the land");
  await page.getByRole("rowheader", { name: "preset" }).waitFor();
  assert.equal(await page.title(), "one · wgpt");
  await page.getByText("Loss as a table").press("Enter");
  const values = await page.locator("#chart-loss tbody tr").allInnerTexts();
  assert.equal(values[0].replaceAll(/\s+/g, " ").trim(), "one 1 8");
  await checkAccessibility(page);
});

testInBrowser("what is measured appears without a reload, and a run that goes back is drawn anew", async (open) => {
  await using served = await serve("live", "late");
  const run = join(served.root, "live");
  await makeRun(run, { updates: 9 });
  const page = await open(served.url);
  await summary(page, "loss", "live: 4.444 at update 9");
  await append(run, update(10, { loss: 3.5 }), { kind: "evaluation", step: 10, loss: 3.625 });
  await summary(page, "loss", "live: 3.5 at update 10, from 3.5 to 8; live held-out: 3.625 at update 10");
  await page.getByText("update 10 of 40, 30 s left").waitFor();
  await replaceMetrics(run, records(5));
  await summary(page, "loss", /^live: 4\.8 at update 5, from 4\.8 to 8$/);
  await append(run, update(4, { loss: 7 })); // measured again without a cut
  await summary(page, "loss", /^live: 7 at update 4, from 5\.333 to 8$/);
  await makeRun(join(served.root, "late"), { lift: 1 });
  await summary(page, "loss", "late: 5.1 at update 40");
  await Deno.remove(run, { recursive: true });
  await page.getByText("its folder is gone").waitFor();
  await summary(page, "loss", /^late: 5\.1/);
});

testInBrowser("runs lie over each other, and are hidden and shown by key", async (open) => {
  await using served = await serve("a", "b<i>");
  await makeRun(join(served.root, "a"));
  await makeRun(join(served.root, "b<i>"), { lift: 1, config: { preset: "small" } });
  const page = await open(served.url);
  await summary(page, "loss", /a: 4\.1 .*b<i>: 5\.1 /);
  assert.ok(await painted(page, "loss", BLUE) > 100 && await painted(page, "loss", BROWN) > 100);
  assert.match((await page.locator("tr.differs").allInnerTexts()).join(), /^preset\s+tiny\s+small$/);
  await page.getByRole("checkbox", { name: "b<i>" }).press("Space");
  await summary(page, "loss", /^a: [^<]*$/);
  assert.equal(await painted(page, "gradNorm", BROWN), 0);
  await page.getByLabel("Over").selectOption("tokens");
  await summary(page, "gradNorm", `a: 1.025 at tokens 40.96K`);
  await page.getByLabel("Over").selectOption("time");
  await summary(page, "gradNorm", `a: 1.025 at training time 40 s`);
  const before = await page.locator("#chart-loss canvas").evaluate((canvas) =>
    (canvas as HTMLCanvasElement).toDataURL()
  );
  await page.getByLabel("Log scale").press("Space");
  await page.waitForFunction(
    (before) => document.querySelector<HTMLCanvasElement>("#chart-loss canvas")!.toDataURL() !== before,
    before,
  );
});

testInBrowser("it follows light and dark, and fits a phone", async (open) => {
  await using served = await serve("one");
  await makeRun(join(served.root, "one"), { updates: STEPS - 1 });
  const page = await open(served.url, { colorScheme: "dark", viewport: { width: 360, height: 700 } });
  await summary(page, "loss", "at update 39");
  assert.ok(await painted(page, "loss", LIGHT_BLUE) > 100);
  await checkAccessibility(page);
  assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 360);
  await page.getByRole("button", { name: "Light colors" }).click();
  while (await painted(page, "loss", BLUE) < 100) await page.waitForTimeout(20); // drawn with a later frame
  assert.equal(await painted(page, "loss", LIGHT_BLUE), 0);
});
