/** The serving commands' flags, helps and failures, each a line and an exit code. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { listCaches } from "../../kernels/gpu/tune_cache.ts";
import { UserError } from "../../model/errors.ts";
import { findModel, newestRun } from "../../serve/open_model.ts";

const main = new URL("../../serve/main.ts", import.meta.url).pathname;

/** Runs one of the commands as a process, with the rights its task gives it, in a folder of its own. */
async function command(
  args: string[],
  options: Pick<Deno.CommandOptions, "cwd" | "env"> = {},
): Promise<{ code: number; out: string; error: string[] }> {
  const flags = ["run", "--no-prompt", "--no-check", "--allow-read", "--allow-write", "--allow-env", "--allow-net"];
  const started = new Deno.Command(Deno.execPath(), { args: [...flags, main, ...args], ...options });
  const { code, stdout, stderr } = await started.output();
  const decoder = new TextDecoder();
  return { code, out: decoder.decode(stdout), error: decoder.decode(stderr).trimEnd().split("\n") };
}

async function temporaryFolder(): Promise<AsyncDisposable & { path: string }> {
  const path = await Deno.makeTempDir();
  return { path, [Symbol.asyncDispose]: () => Deno.remove(path, { recursive: true }) };
}

/** Writes a run with a checkpoint that was made at a time. */
async function writeRun(root: string, name: string, checkpoint: string, time: number): Promise<string> {
  const checkpoints = join(root, name, "checkpoints");
  await Deno.mkdir(join(checkpoints, checkpoint), { recursive: true });
  await Deno.writeTextFile(join(checkpoints, "latest"), `${checkpoint}\n`);
  await Deno.utime(join(checkpoints, "latest"), time, time);
  return join(checkpoints, checkpoint);
}

Deno.test("models are found by folder, name and run", async () => {
  await using folder = await temporaryFolder();
  const root = await Deno.realPath(folder.path);
  const model = join(root, "gpt2");
  await Deno.mkdir(model);
  for (const path of [model, model + "/", model + "//"]) {
    assert.deepEqual(await findModel(path), { folder: model, name: "gpt2" });
  }
  assert.deepEqual(await findModel(`my=${model}/`), { folder: model, name: "my" });
  assert.deepEqual(await findModel(`org/name=${model}`), { folder: model, name: "org/name" });
  const odd = join(root, "a=b");
  await Deno.mkdir(odd);
  assert.deepEqual(await findModel(odd), { folder: odd, name: "a=b" });
  await assert.rejects(findModel(join(root, "missing")), UserError);

  const runs = join(root, "runs");
  await assert.rejects(newestRun(runs), /deno task train/);
  const old = await writeRun(runs, "old", "step-000100", 1000);
  const young = await writeRun(runs, "young", "step-000050", 2000);
  await Deno.mkdir(join(runs, "unfinished", "checkpoints"), { recursive: true });
  assert.deepEqual(await newestRun(runs), { folder: young, name: "young" });
  assert.deepEqual(await findModel(join(runs, "old")), { folder: old, name: "old" });
  assert.deepEqual(await findModel(old), { folder: old, name: "step-000100" });
  await Deno.remove(old, { recursive: true });
  await assert.rejects(findModel(join(runs, "old")), UserError);
});

Deno.test("all commands explain themselves", async () => {
  for (const [name, flag] of [["serve", "--port"], ["generate", "--temperature"], ["tune", "--again"]]) {
    const { code, out } = await command([name, "--help"]);
    assert.equal(code, 0);
    assert.match(out, new RegExp(flag));
  }
});

Deno.test("what is wrong with a command line is said in one line, exit code 2", async () => {
  for (
    const args of [
      ["serve", "--prot", "1"],
      ["serve", "--port", "70000"],
      ["serve", "x"],
      ["serve", "--host", "0.0.0.0"],
      ["serve", "--kv-memory", "lots"],
      ["generate", "--top-p", "2"],
      ["sing"],
      [],
    ]
  ) {
    const { code, error, out } = await command(args);
    assert.deepEqual([code, error.length, out], [2, 1, ""], `${args}: ${error}`);
  }
});

Deno.test("no run, no folder, no free port: one line, exit code 1", async () => {
  await using folder = await temporaryFolder();
  const none = await command(["serve"], { cwd: folder.path });
  assert.deepEqual([none.code, none.error.length], [1, 1], none.error.join("\n"));
  assert.match(none.error[0], /deno task train/);
  const missing = await command(["generate", "--model", join(folder.path, "missing")]);
  assert.deepEqual([missing.code, missing.error.length], [1, 1], missing.error.join("\n"));
  using busy = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const taken = await command(["serve", "--model", folder.path, "--port", String(busy.addr.port)]);
  assert.equal(taken.code, 1);
  assert.deepEqual(taken.error, [`error: Choose another --port: ${busy.addr.port} is in use on 127.0.0.1`]);
});

Deno.test("tune times the kernels of the format that --dtype names", async () => {
  await using folder = await temporaryFolder();
  const model = fileURLToPath(new URL("../fixtures/gpt2-tiny", import.meta.url));
  const { code, error } = await command(["tune", "--model", model, "--dtype", "bf16", "--seconds", "4"], {
    env: { WGPT_CACHE: folder.path },
  });
  assert.equal(code, 0, error.join("\n"));
  const [{ winners }] = listCaches(folder.path);
  assert.ok(Object.keys(winners).some((call) => call.includes(" bf16 kept")), Object.keys(winners).join("\n"));
});
