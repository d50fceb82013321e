/** Runs followed as they grow, are cut back and go; what is said of them over HTTP; wrong use of the command. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import type { MetricRecord } from "../../model/run_metrics.ts";
import { createDashboard, ShownRuns } from "../../serve/dashboard.ts";
import { RunReader } from "../../serve/run_reader.ts";
import { readStatus } from "../../serve/run_status.ts";
import { append, lines, makeRun, records, replaceMetrics, STEPS, update } from "./run_folder.ts";

async function inFolder(body: (folder: string) => Promise<void>): Promise<void> {
  const root = await Deno.makeTempDir();
  try {
    await body(join(root, "run"));
  } finally {
    await Deno.remove(root, { recursive: true });
  }
}

/** All that a listener of this reader knows after its news. */
async function hear(reader: RunReader, known: MetricRecord[] = []): Promise<MetricRecord[]> {
  for await (const { reset, records } of reader.read()) known = reset ? [...records] : [...known, ...records];
  return known;
}

Deno.test("however a file grows, in whatever pieces, its records come once and in order", async () => {
  const all = [...records(12), { ...update(13), note: "ünïcødé ✓ 語" }];
  const bytes = new TextEncoder().encode(lines(all));
  const cuts = fc.array(fc.integer({ min: 0, max: bytes.length }), { maxLength: 12 });
  await fc.assert(
    fc.asyncProperty(cuts, fc.integer({ min: 0, max: 12 }), async (cuts, handedOver) => {
      await inFolder(async (folder) => {
        await Deno.mkdir(folder);
        let reader = new RunReader(folder);
        let known = await hear(reader);
        const ends = [0, ...cuts.sort((a, b) => a - b), bytes.length];
        for (const [i, end] of ends.slice(1).entries()) {
          await Deno.writeFile(join(folder, "metrics.jsonl"), bytes.subarray(ends[i], end), { append: true });
          if (i === handedOver) reader = new RunReader(folder, reader.position); // another connection goes on
          known = await hear(reader, known);
        }
        assert.deepEqual(known, all);
      });
    }),
    { numRuns: 60 },
  );
});

Deno.test("a run that goes back, shorter or longer than before, is read anew, also by who was away meanwhile", async () => {
  await inFolder(async (folder) => {
    await makeRun(folder, { updates: 12 });
    const [reader, other] = [new RunReader(folder), new RunReader(folder)];
    const before = await hear(reader);
    await hear(other);
    assert.deepEqual(before, records(12));
    for (const updates of [10, 15]) {
      const again = [...records(8), ...records(updates).slice(10).map((record) => ({ ...record, tokensPerSecond: 7 }))];
      await replaceMetrics(folder, again);
      assert.deepEqual(await hear(new RunReader(folder, other.position), [...before]), again);
      assert.deepEqual(await hear(reader, [...before]), again);
    }
    const same = await hear(reader, []);
    assert.deepEqual(same, []);
  });
});

Deno.test("a run that is removed is empty, and one that appears later is read from its beginning", async () => {
  await inFolder(async (folder) => {
    const reader = new RunReader(folder);
    assert.deepEqual(await hear(reader), []);
    assert.equal((await readStatus(folder, false)).state, "waiting");
    await makeRun(folder, { updates: 3 });
    const known = await hear(reader);
    assert.deepEqual(known, records(3));
    await Deno.remove(folder, { recursive: true });
    assert.deepEqual(await hear(reader, known), []);
    assert.equal((await readStatus(folder, true)).state, "removed");
    await makeRun(folder, { updates: 2 });
    assert.deepEqual(await hear(reader, known), records(2));
  });
});

Deno.test("lines that are no records and files that lead out of the folder are passed over", async () => {
  await inFolder(async (folder) => {
    await makeRun(folder, { updates: 2 });
    const path = join(folder, "metrics.jsonl");
    await Deno.writeTextFile(path, `{"kind":"other"}\nnull\n[1]\n${"x".repeat(600_000)}\n`, { append: true });
    await append(folder, update(3));
    assert.deepEqual(await hear(new RunReader(folder)), [...records(2), update(3)]);
    await Deno.writeTextFile(`${folder}-secret.json`, `{"secret": 1}`);
    await Deno.remove(join(folder, "config.json"));
    await Deno.symlink(`${folder}-secret.json`, join(folder, "config.json"));
    await Deno.symlink(path, `${folder}-metrics`);
    assert.deepEqual((await readStatus(folder, true)).config, {});
    assert.deepEqual(await hear(new RunReader(`${folder}-metrics`)), []);
  });
});

Deno.test("a run's state tells whether it goes on, how far it is and how long it will take", async () => {
  await inFolder(async (folder) => {
    await makeRun(folder, { updates: 10 });
    const running = await readStatus(folder, true);
    assert.deepEqual([running.state, running.step, running.steps, running.secondsLeft], ["running", 10, STEPS, 30]);
    assert.deepEqual([running.loss, running.heldOutLoss], [4.4, 4.5]);
    assert.deepEqual(running.samples.map(({ step }) => step), [10, 20]);
    assert.equal((await readStatus(folder, true, Date.now() + 80_000)).state, "running");
    assert.equal((await readStatus(folder, true, Date.now() + 100_000)).state, "stalled");
    await makeRun(folder);
    assert.equal((await readStatus(folder, true, Date.now() + 1e9)).state, "finished");
    await Deno.writeTextFile(join(folder, "config.json"), `{"preset": "ti`);
    assert.deepEqual((await readStatus(folder, true)).config, {});
  });
});

interface SentEvent {
  readonly event: string;
  readonly data: unknown;
  readonly id?: string;
}

/** The first so many events of a response, which is then hung up on. */
async function events(response: Response, count: number): Promise<SentEvent[]> {
  const found: SentEvent[] = [];
  let text = "";
  for await (const piece of response.body!.pipeThrough(new TextDecoderStream())) {
    text += piece;
    const parts = text.split("\n\n");
    text = parts.pop()!;
    for (const part of parts) {
      const field = (name: string) => new RegExp(`^${name}: (.*)$`, "m").exec(part)?.[1];
      found.push({ event: field("event") ?? "", data: JSON.parse(field("data") ?? "null"), id: field("id") });
    }
    if (found.length >= count) break;
  }
  return found;
}

Deno.test("events bring what is new; a listener that comes back goes on where it was", async () => {
  await inFolder(async (folder) => {
    await makeRun(folder, { updates: 5 });
    const second = `${folder}-2`;
    await makeRun(second, { updates: 3 });
    const closing = new AbortController();
    const app = createDashboard(new ShownRuns([folder, second]), closing.signal, { every: 20 });
    const [runs, one, two] = await events(await app.request("/events"), 3);
    assert.equal(runs.event, "runs");
    assert.deepEqual((runs.data as { name: string }[]).map(({ name }) => name), ["run", "run-2"]);
    assert.deepEqual(one.data, { run: 0, reset: true, records: records(5) });
    assert.deepEqual(two.data, { run: 1, reset: true, records: records(3) });
    await append(second, update(4));
    const [, more] = await events(await app.request("/events", { headers: { "Last-Event-ID": two.id! } }), 2);
    assert.deepEqual(more.data, { run: 1, reset: false, records: [update(4)] });
    const hostile = { "Last-Event-ID": "9999999-000000000000,-1,%" };
    const [, anew] = await events(await app.request("/events", { headers: hostile }), 2);
    assert.deepEqual(anew.data, { run: 0, reset: true, records: [] });
    closing.abort();
  });
});

Deno.test("the page and its files are served under a strict policy, runs as JSON, and nothing else", async () => {
  await inFolder(async (folder) => {
    await makeRun(folder);
    const app = createDashboard(new ShownRuns([folder]), new AbortController().signal);
    const page = await app.request("/");
    assert.match(page.headers.get("Content-Security-Policy")!, /script-src 'self';.*require-trusted-types-for/);
    const links = [...(await page.text()).matchAll(/(?:src|href)="(page\/[^"]+)"/g)].map(([, path]) => path);
    assert.ok(links.includes("page/uplot.js"));
    for (const path of links) assert.equal((await app.request(`/${path}`)).status, 200, path);
    const [status] = await (await app.request("/api/runs")).json();
    assert.deepEqual([status.name, status.state, status.run.device], ["run", "finished", "a device"]);
    for (const path of ["/page/../deno.json", "/metrics.jsonl", "/api/runs/0"]) {
      assert.equal((await app.request(path)).status, 404, path);
    }
  });
});

const [CONFIG, MAIN] = ["../../deno.json", "../../serve/main.ts"].map((path) => {
  return fileURLToPath(new URL(path, import.meta.url));
});

async function command(args: readonly string[], cwd: string): Promise<{ code: number; error: string }> {
  const permissions = ["--no-prompt", "--allow-read", "--allow-net", "--allow-env"];
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "-q", "--config", CONFIG, ...permissions, MAIN, "dashboard", ...args],
    env: { NO_COLOR: "1" },
    cwd,
  });
  const { code, stderr } = await child.output();
  return { code, error: new TextDecoder().decode(stderr) };
}

Deno.test("wrong use of the command is one line", async () => {
  await inFolder(async (folder) => {
    await Deno.mkdir(folder);
    const wrong: [string[], number, RegExp][] = [
      [[`${folder}-none`], 1, /^error: Give a run's folder, or --wait for it: found .*-none, and there is none\n$/],
      [[folder], 1, /^error: Give a run's folder: .*run holds neither config\.json nor metrics\.jsonl\n$/],
      [[], 1, /^error: No run found in runs: start one with `deno task train`\n$/],
      [["--prot", "1"], 2, /^error: Unknown flag --prot: did you mean --port\?\n$/],
      [["--port", "70000"], 2, /^error: --port: found 70000, wanted a whole number from 0 to 65535\n$/],
    ];
    const ended = await Promise.all(wrong.map(([args]) => command(args, folder)));
    ended.forEach(({ code, error }, i) => {
      assert.match(error, wrong[i][2]);
      assert.equal(code, wrong[i][1], error);
    });
  });
});
