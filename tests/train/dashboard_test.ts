/** `train --dashboard`: the page is up while a tiny model trains, with the task's own permissions, and gone however that ends. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import project from "../../deno.json" with { type: "json" };
import { processes, until } from "./left_behind.ts";
import { makeData } from "./runs.ts";

const path = (name: string) => fileURLToPath(new URL(name, import.meta.url));
const [ROOT, CONFIG] = [path("../.."), path("../../deno.json")];

const FLAGS = [
  ...["--context", "16", "--n-layer", "1", "--n-head", "1", "--n-embd", "16", "--tune", "off", "--micro-batch", "2"],
  ...["--eval-every", "0", "--eval-batches", "1", "--sample-every", "0", "--sample-tokens", "1"],
  ...["--checkpoint-every", "0"],
];

interface Training {
  readonly child: Deno.ChildProcess;
  readonly url: string;
  readonly run: string;
  /** All that was said, when it has ended. */
  readonly said: Promise<string>;
}

/** Starts `deno task train`'s own command, and waits until it names the dashboard's address. */
async function training(folder: string, port: number, steps: number): Promise<Training> {
  await makeData(join(folder, "data"));
  const run = join(folder, "run");
  const [, ...words] = project.tasks.train.command.split(" ");
  const flags = [...FLAGS, "--steps", `${steps}`, "--data", join(folder, "data"), "--out", run];
  const child = new Deno.Command(Deno.execPath(), {
    args: [words[0], "--config", CONFIG, ...words.slice(1), ...flags, "--dashboard", `${port}`],
    env: { NO_COLOR: "1" },
    cwd: ROOT,
    stdin: "null",
    stdout: "piped",
    stderr: "inherit",
  }).spawn();
  const found = Promise.withResolvers<string>();
  const said = (async () => {
    let text = "";
    for await (const piece of child.stdout.pipeThrough(new TextDecoderStream())) {
      text += piece;
      const [, url] = /^dashboard: (http\S+\/)$/m.exec(text) ?? [];
      if (url !== undefined) found.resolve(url);
    }
    found.reject(new Error(`no address was said in: ${text}`));
    return text;
  })();
  return { child, url: await found.promise, run, said };
}

/** Waits until the page shows updates of the run. */
async function seen({ url, run }: Training): Promise<void> {
  await until(async () => {
    const [shown] = await (await fetch(`${url}api/runs`)).json();
    return shown?.folder === run && shown.state === "running" && shown.step > 0;
  });
}

async function isDown(url: string): Promise<boolean> {
  return await fetch(url).then(async ({ body }) => (await body?.cancel(), false), () => true);
}

async function inFolder(body: (folder: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await body(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

function freePort(): number {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return listener.addr.port;
}

for (
  const [how, signal, code] of [["is done"], ["is interrupted", "SIGINT", 0], ["is killed", "SIGKILL", 137]] as const
) {
  Deno.test(`the dashboard is up while training goes on, and gone when it ${how}`, async () => {
    await inFolder(async (folder) => {
      const port = signal === undefined ? 0 : freePort();
      const started = await training(folder, port, signal === undefined ? 60 : 100_000);
      assert.match(await (await fetch(started.url)).text(), /<title>wgpt runs/);
      await seen(started);
      if (signal !== undefined) started.child.kill(signal);
      assert.equal((await started.child.status).code, code ?? 0);
      await started.said; // all that holds its output has ended
      await until(() => isDown(started.url));
      if (port > 0) await until(async () => (await processes(`--attached --port ${port}`)).length === 0);
    });
  });
}

Deno.test("a port that is taken is said before anything is trained", async () => {
  await inFolder(async (folder) => {
    using taken = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const child = new Deno.Command(Deno.execPath(), {
      args: ["run", "-q", "--allow-all", "--config", CONFIG, join(ROOT, "train/main.ts"), "train", ...FLAGS]
        .concat("--steps", "1", "--out", join(folder, "run"), "--dashboard", `${taken.addr.port}`),
      env: { NO_COLOR: "1" },
    });
    const { code, stderr } = await child.output();
    assert.equal(code, 1);
    assert.match(
      new TextDecoder().decode(stderr),
      /^error: Choose another --port: \d+ is in use on 127\.0\.0\.1\nerror: Cannot start the dashboard: .*\n$/,
    );
    assert.deepEqual([...Deno.readDirSync(folder)], []);
  });
});
