/** Settings of a server: where they come from, what comes first, what is refused, what is printed. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { UserError } from "../../model/errors.ts";
import {
  describeSettings,
  engineOf,
  operationOf,
  parseBytes,
  readSettings,
  settingsHelp,
} from "../../serve/settings.ts";

const read = async (args: readonly string[], environment: Record<string, string> = {}) =>
  (await readSettings(args, (name) => environment[name]))!;

const refuses = (args: readonly string[], message: RegExp, environment: Record<string, string> = {}) =>
  assert.rejects(
    read(args, environment),
    (error) => error instanceof UserError && error.exitCode === 2 && message.test(error.message),
  );

Deno.test("flags come before the environment, that before the file, that before defaults", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const config = join(folder, "server.json");
    await Deno.writeTextFile(config, JSON.stringify({ port: 1, maxQueue: 2, "rate-limit": 3, model: ["a", "b"] }));
    const settings = await read(["--config", config, "--port", "11"], { WGPT_PORT: "21", WGPT_MAX_QUEUE: "22" });
    assert.deepEqual(
      [settings.port, settings.maxQueue, settings.rateLimit, settings.model, settings.drainSeconds],
      [11, 22, 3, ["a", "b"], 30],
    );
    assert.equal((await read([], { WGPT_CONFIG: config })).port, 1);
    await Deno.writeTextFile(config, '{"prot": 1}');
    await refuses(["--config", config], /unknown field "prot": did you mean port/);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("the environment has flags and lists, and is checked like the command line", async () => {
  const settings = await read([], { WGPT_LAZY: "1", WGPT_LOG_PROMPTS: "false", WGPT_API_KEY: "a, b", WGPT_AUTH: "0" });
  assert.deepEqual([settings.lazy, settings.logPrompts, settings.apiKey, settings.auth], [
    true,
    false,
    ["a", "b"],
    false,
  ]);
  await refuses([], /environment.*--port.*"many"/, { WGPT_PORT: "many" });
});

Deno.test("listening beyond this machine takes a key, or word that it doesn't", async () => {
  for (const host of ["0.0.0.0", "::", "192.168.1.7", "example.org", "127.evil.example"]) {
    await refuses(["--host", host], /lets other machines in/);
    await read(["--host", host, "--no-auth"]);
    await read(["--host", host], { WGPT_API_KEY: "key" });
  }
  for (const host of ["127.0.0.1", "127.0.0.2", "localhost", "::1"]) await read(["--host", host]);
});

Deno.test("keys come from flags and a file, and are never printed", async () => {
  const file = await Deno.makeTempFile();
  try {
    await Deno.writeTextFile(file, "# ours\nkey-one\n\n key-two \r\n");
    const settings = await read(["--api-key", "key-zero", "--api-key-file", file, "--host", "0.0.0.0"]);
    assert.deepEqual(operationOf(settings).apiKeys, ["key-zero", "key-one", "key-two"]);
    const printed = describeSettings(settings);
    assert.ok(!printed.includes("key-"), printed);
    assert.match(printed, /host 0\.0\.0\.0; apiKey \(3 of them\)/);
    await Deno.writeTextFile(file, "# none\n");
    await refuses(["--api-key-file", file], /holds none/);
    await refuses(["--api-key-file", file + ".none"], /Cannot read API keys/);
    await refuses(["--api-key", ""], /API keys/);
    await refuses(["--api-key", "two words"], /API keys/);
  } finally {
    await Deno.remove(file);
  }
  assert.equal(describeSettings(await read([])), "Settings: the defaults");
});

Deno.test("sizes are bytes with powers of 1,024", async () => {
  assert.deepEqual(["7", "4K", "1.5M", "2G", "1GiB"].map((size) => parseBytes(size, "x")), [
    7,
    4096,
    1572864,
    2147483648,
    1073741824,
  ]);
  for (const size of ["", "0", "-1", "4T", "1e9", "M"]) assert.throws(() => parseBytes(size, "x"), UserError);
  const settings = await read(["--kv-memory", "64M", "--max-sequences", "8", "--max-body", "1K"]);
  assert.deepEqual(engineOf(settings), {
    kvMemory: 67108864,
    maxSequences: 8,
    maxBatchedTokens: undefined,
    batchInvariant: false,
  });
  assert.equal(operationOf(settings).maxBodyBytes, 1024);
  const few = await read(["--max-sequences", "8", "--max-batched-tokens", "4"]);
  assert.throws(() => engineOf(few), (error) => error instanceof UserError && error.exitCode === 2);
});

Deno.test("help names every setting, and the flag that switches keys off", async () => {
  assert.equal(await readSettings(["--help"], () => undefined), undefined);
  const help = settingsHelp("usage");
  for (const flag of ["--no-auth", "--api-key-file", "--kv-memory", "--drain-seconds", "WGPT_MAX_QUEUE"]) {
    assert.ok(help.includes(flag), flag);
  }
});
