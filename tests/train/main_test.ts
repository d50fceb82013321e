/** The commands as a user meets them: help, wrong usage, one line for each error, exit codes. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { makeData, runTraining, SMALL } from "./runs.ts";

const MAIN = fileURLToPath(new URL("../../train/main.ts", import.meta.url));
const CONFIG = fileURLToPath(new URL("../../deno.json", import.meta.url));

interface Ended {
  readonly code: number;
  readonly out: string;
  readonly error: string;
}

async function command(
  args: readonly string[],
  options: { readonly cwd?: string; readonly env?: Record<string, string> } = {},
): Promise<Ended> {
  const permissions = ["--no-prompt", "--allow-read", "--allow-write", "--allow-env", "--allow-sys"];
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "--config", CONFIG, ...permissions, MAIN, ...args],
    env: { NO_COLOR: "1", ...options.env },
    cwd: options.cwd,
  });
  const { code, stdout, stderr } = await child.output();
  return { code, out: new TextDecoder().decode(stdout), error: new TextDecoder().decode(stderr) };
}

Deno.test("every command prints its help", async () => {
  const helps = await Promise.all(
    ["train", "evaluate", "plot", "tune", "adapters"].map((name) => command([name, "--help"])),
  );
  for (const { code, out, error } of helps) {
    assert.equal(code, 0, error);
    assert.match(out, /deno task (train|evaluate|plot|tune|adapters)/);
    assert.match(out, /--help/);
  }
});

Deno.test("wrong usage is one line and exit code 2", async () => {
  const wrong: [string[], RegExp][] = [
    [["train", "--lerning-rate", "1"], /^error: Unknown flag --lerning-rate: did you mean --learning-rate\?\n$/],
    [["train", "--steps", "many"], /^error: --steps: found "many", wanted a whole number from 0\n$/],
    [["trian"], /^error: Unknown command trian: did you mean train\?\n$/],
    [[], /^error: Unknown command \(none\): wanted train, prepare/],
    [["plot"], /^error: Name one run: deno task plot RUN\n$/],
    [["evaluate", "--split", "test"], /^error: --split: found "test", wanted validation or train\n$/],
    [["adapters", "--jsn"], /^error: Unknown flag --jsn: did you mean --json\?\n$/],
  ];
  for (const [args, message] of wrong) {
    const { code, error } = await command(args);
    assert.equal(code, 2, args.join(" "));
    assert.match(error, message);
  }
});

Deno.test("what can't be done is one line and exit code 1; the stack comes when asked for", async () => {
  const folder = await Deno.makeTempDir();
  const missing = await command(["plot", join(folder, "none")]);
  assert.equal(missing.code, 1);
  assert.match(missing.error, /^error: Cannot read .*none\/metrics\.jsonl: No such file or directory\n$/);
  const nothing = await command(["evaluate"], { cwd: folder });
  assert.match(
    nothing.error,
    /^error: Train a model first \(deno task train\) or give one with --model: runs holds no checkpoint\n$/,
  );
  const resumed = await command(["train", "--resume"], { cwd: folder });
  assert.match(resumed.error, /^error: No run found in runs: start one with `deno task train`\n$/);
  const debug = await command(["plot", join(folder, "none")], { env: { WGPT_DEBUG: "1" } });
  assert.match(debug.error, /metrics\.ts:\d+/);
  await Deno.remove(folder, { recursive: true });
});

Deno.test("without an adapter there is one line that says what to install, and exit code 3", async () => {
  const env = { VK_DRIVER_FILES: "/dev/null", VK_ICD_FILENAMES: "/dev/null", DENO_WEBGPU_BACKEND: "vulkan" };
  const { code, error } = await command(["adapters"], { env });
  assert.match(error, /error: No WebGPU adapter found: install .*\n$/);
  assert.equal(code, 3);
});

Deno.test("a dry run tells memory, work and time, and leaves nothing; a run that can't fit leaves nothing either", async () => {
  const folder = await Deno.makeTempDir();
  const dry = await command(["train", "--dry-run", "--micro-batch", "2"], { cwd: folder });
  assert.equal(dry.code, 0, dry.error);
  assert.match(dry.out, /1,334,016 parameters, \d\.\d\d MFLOP a token, \d+ dispatches a microstep, \d+ an update/);
  assert.match(dry.out, /memory +MB\n {2}weights +5\.3\n/);
  assert.match(dry.out, /expected: .* an update of 256 tokens, [\d,]+ tokens\/s.*\n.*a prediction from/);
  assert.match(dry.out, /nothing was started\n$/);
  const refused = await command(["train", "--memory", "0.03"], { cwd: folder });
  assert.equal(refused.code, 1);
  assert.match(
    refused.error,
    /^error: Cannot train in 0\.030 GB \(--memory 0\.03\): this run holds .*--micro-batch.*\n$/,
  );
  const wide = await command(["train", "--memory", "100", "--micro-batch", "1000000"], { cwd: folder });
  assert.equal(wide.code, 1);
  assert.match(wide.error, /^error: Lower --micro-batch: the adapter can't take --micro-batch 1000000 x .*\n$/);
  assert.deepEqual([...Deno.readDirSync(folder)], []);
  await Deno.remove(folder, { recursive: true });
});

Deno.test("plot draws a run again", async () => {
  const root = await Deno.makeTempDir();
  await makeData(join(root, "data"));
  const run = join(root, "run");
  await runTraining([...SMALL, "--steps", "3", "--data", join(root, "data"), "--out", run]);
  await Deno.remove(join(run, "plots"), { recursive: true });
  const { code, out } = await command(["plot", run]);
  assert.equal(code, 0);
  assert.deepEqual(out.trim().split("\n").map((file) => file.replace(/.*plots\//, "")), [
    "loss.svg",
    "gradient_norm.svg",
    "learning_rate.svg",
    "throughput.svg",
  ]);
  await Deno.remove(root, { recursive: true });
});
