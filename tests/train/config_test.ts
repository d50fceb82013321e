/** Settings: what counts more than what, what is refused, and what a resumed run may change. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { UserError } from "../../model/errors.ts";
import { type Config, fields, parseConfig, readSettings, resumedConfig, type Settings } from "../../train/config.ts";
import { presetNames, presets } from "../../train/presets.ts";

async function settings(...args: string[]): Promise<Settings> {
  const result = await readSettings(args);
  assert.ok("config" in result);
  return result;
}

async function config(...args: string[]): Promise<Config> {
  return (await settings(...args)).config;
}

async function refuses(message: RegExp, ...args: string[]): Promise<void> {
  await assert.rejects(readSettings(args), (error) => {
    assert.ok(error instanceof UserError);
    assert.equal(error.exitCode, 2);
    assert.match(error.message, message);
    return true;
  });
}

Deno.test("flags count more than the file, the file more than the preset", async () => {
  const folder = await Deno.makeTempDir();
  const file = join(folder, "run.json");
  await Deno.writeTextFile(file, JSON.stringify({ preset: "small", nLayer: 9, nHead: 2, seed: 7 }));
  const result = await settings("--config", file, "--n-head", "3");
  assert.equal(result.config.nEmbd, presets.small.nEmbd);
  assert.equal(result.config.nLayer, 9);
  assert.equal(result.config.nHead, 3);
  assert.equal(result.config.clip, fields.clip.default);
  assert.deepEqual(result.written, { preset: "small", nLayer: 9, nHead: 3, seed: 7 });
  assert.equal(result.given.nEmbd, presets.small.nEmbd);
  assert.deepEqual((await settings("--seed", "3")).given, { seed: 3 });
  await Deno.remove(folder, { recursive: true });
});

Deno.test("a saved config is a config file that gives the same settings", async () => {
  const folder = await Deno.makeTempDir();
  const file = join(folder, "config.json");
  for (const preset of presetNames) {
    const first = await config("--preset", preset, "--seed", "5");
    await Deno.writeTextFile(file, JSON.stringify(first));
    assert.deepEqual(await config("--config", file), first);
    assert.deepEqual(parseConfig(JSON.parse(await Deno.readTextFile(file)), file), first);
  }
  await Deno.remove(folder, { recursive: true });
});

Deno.test("every preset is valid, and the published recipe is as published", async () => {
  for (const preset of presetNames) await config("--preset", preset);
  const recipe = await config("--preset", "fineweb-edu");
  const published: Partial<Config> = {
    nLayer: 12,
    nHead: 12,
    nEmbd: 768,
    context: 1024,
    vocabularySize: 50257,
    tokenizer: "gpt2",
    batchTokens: 524_288,
    beta1: 0.9,
    beta2: 0.98,
    eps: 1e-9,
    weightDecay: 0.01,
    clip: 1,
    learningRate: 1e-3,
    minLearningRate: 0,
    warmup: 500,
    schedule: "cosine",
    dropout: 0.1,
    steps: 0,
    epochs: 5,
  };
  for (const [name, value] of Object.entries(published)) assert.equal(recipe[name as keyof Config], value, name);
});

Deno.test("steps and epochs replace each other", async () => {
  const byEpochs = await config("--preset", "tiny", "--epochs", "2");
  assert.deepEqual([byEpochs.steps, byEpochs.epochs], [0, 2]);
  const bySteps = await config("--preset", "gpt2", "--steps", "9");
  assert.equal(bySteps.steps, 9);
  await refuses(/^Give steps or epochs, not both/, "--steps", "3", "--epochs", "2");
});

Deno.test("--init-from takes shape, context and tokenizer from the folder, unless something else is said", async () => {
  const folder = "tests/fixtures/gpt2-tiny"; // 2 layers, 3 heads, width 48, context 40
  const { nLayer, nHead, nEmbd, context, tokenizer, initFrom } = await config("--init-from", folder);
  assert.deepEqual([nLayer, nHead, nEmbd, context], [2, 3, 48, 40]);
  assert.deepEqual([tokenizer, initFrom], [folder, folder]);
  const said = await config("--init-from", folder, "--context", "16", "--tokenizer", "bytes", "--n-layer", "1");
  assert.deepEqual([said.nLayer, said.nHead, said.context, said.tokenizer], [1, 3, 16, "bytes"]);
  assert.equal((await config("--init-from", folder, "--data", "some/data")).tokenizer, "");
  const { given, written } = await settings("--init-from", folder);
  assert.deepEqual([given, written], [{ initFrom: folder }, { initFrom: folder }]);
});

Deno.test("what can't be is refused in one line", async () => {
  await refuses(/^Unknown flag --lerning-rate: did you mean --learning-rate\?$/, "--lerning-rate", "1");
  await refuses(/^--preset: found "gpt3", wanted tiny, .*; did you mean gpt2\?$/, "--preset", "gpt3");
  await refuses(/--n-embd 100 and --n-head 3/, "--n-embd", "100", "--n-head", "3");
  await refuses(
    /found 1000, and --micro-batch 8 × --context 128 = 1024$/,
    "--batch-tokens",
    "1000",
    "--micro-batch",
    "8",
    "--context",
    "128",
  );
  await refuses(/0.5 is above the peak 0.1/, "--min-learning-rate", "0.5", "--learning-rate", "0.1");
  await refuses(/both are 0/, "--steps", "0", "--epochs", "0");
  await refuses(/wanted a number from 0 to 0.999/, "--dropout", "1");
  await assert.rejects(readSettings(["--config", "no/such.json"]), /Cannot read no\/such.json/);
});

Deno.test("help lists every setting", async () => {
  const result = await readSettings(["--help"]);
  assert.ok("help" in result);
  assert.ok(
    Object.keys(fields).every((name) =>
      result.help.includes(`--${name.replace(/[A-Z]/g, (c) => "-" + c.toLowerCase())}`)
    ),
  );
});

Deno.test("a resumed run keeps its settings and names those that differ", async () => {
  const saved = await config("--n-layer", "2", "--steps", "50");
  const resumed = resumedConfig(saved, { resume: true, steps: 80, logEvery: 5 });
  assert.deepEqual(resumed, { ...saved, resume: true, steps: 80, logEvery: 5 });
  assert.deepEqual(resumedConfig(saved, { nLayer: 2 }), saved);
  assert.equal(resumedConfig(saved, { epochs: 3 }).steps, 0);
  assert.equal(resumedConfig({ ...saved, dashboard: "8080" }, {}).dashboard, "");
  assert.equal(resumedConfig(saved, { dashboard: "0" }).dashboard, "0");
  assert.throws(
    () => resumedConfig(saved, { nLayer: 3, seed: 9, logEvery: 2 }),
    /other settings: nLayer was 2, now 3; seed was 1, now 9; drop them/,
  );
});
