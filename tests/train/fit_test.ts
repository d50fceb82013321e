/** Runs that are too large: refused before anything is made, with ways out that are true. */
import assert from "node:assert/strict";
import { OutOfMemoryError } from "../../model/errors.ts";
import { type Gpt2Config, gpt2Defaults } from "../../model/gpt2_config.ts";
import { shapeOf } from "../../model/shape.ts";
import { defaultsOf } from "../../model/arguments.ts";
import { type Config, fields } from "../../train/config.ts";
import { limitOf, refuseTooLarge, stepOptions } from "../../train/fit.ts";
import { footprint } from "../../train/footprint.ts";
import { withWaysOut } from "../../train/gpu_learner.ts";
import { testDevice } from "../harness.ts";

const model: Gpt2Config = { ...gpt2Defaults, vocab_size: 500, n_positions: 64, n_embd: 64, n_head: 2, n_layer: 4 };
const config: Config = { ...defaultsOf(fields), context: 64, nLayer: 4, nHead: 2, nEmbd: 64, microBatch: 12 };

async function refusal(bytes: number, changed: Partial<Config> = {}): Promise<string> {
  const { capabilities } = await testDevice();
  const planned = await footprint(shapeOf(model), stepOptions({ ...config, ...changed }), capabilities);
  const limit = { bytes, reason: "--memory" };
  try {
    await refuseTooLarge(planned, limit, shapeOf(model), { ...config, ...changed }, capabilities);
    return "";
  } catch (error) {
    assert.ok(error instanceof Error && error.name === "UserError", String(error));
    return error.message;
  }
}

/** Bytes of a run with the changes that a way out names. */
async function total(flags: string): Promise<number> {
  const { capabilities } = await testDevice();
  const value = (flag: string) => new RegExp(`${flag} (\\w+)`).exec(flags)?.[1];
  const microBatch = Number(value("--micro-batch") ?? config.microBatch);
  const recompute = (value("--recompute") ?? config.recompute) as Config["recompute"];
  const precision = value("--precision") === "bf16" ? "bf16" as const : "f32" as const;
  const options = stepOptions({ ...config, microBatch, recompute, precision });
  return (await footprint(shapeOf(model), options, capabilities)).total;
}

Deno.test("a run that fits is let through; one byte less and it isn't", async () => {
  const bytes = await total("");
  assert.equal(await refusal(bytes), "");
  const message = await refusal(bytes - 1);
  assert.match(message, /^Cannot train in 0\.\d+ GB \(--memory\): this run holds 0\.\d+ GB; try /);
  const ways = [...message.matchAll(/(--[^(]+) \((\d\.\d+) GB\)/g)];
  assert.ok(ways.length >= 2 && ways.length <= 3, message);
  for (const [, flags, gigabytes] of ways) {
    const held = await total(flags);
    assert.equal((held / 1e9).toFixed(3), gigabytes, flags);
    assert.ok(held < bytes, flags);
  }
});

Deno.test("the microbatch named is the largest that fits, and keeps the update's size", async () => {
  const sizes = [await total("--micro-batch 6"), await total("--micro-batch 4")];
  assert.match(await refusal(sizes[0]), /--micro-batch 6 --batch-tokens 768/);
  assert.match(await refusal(sizes[0] - 1), /--micro-batch 4 --batch-tokens 768/);
  const [, flags] = /(--micro-batch \d+[^(,]*) \(/.exec(await refusal(sizes[1], { batchTokens: 1536 }))!;
  assert.equal(flags, "--micro-batch 4");
});

Deno.test("where nothing fits, the smallest are named", async () => {
  const message = await refusal(1000);
  assert.match(message, /nothing fits; smallest are --micro-batch 1 .*--recompute block/);
});

Deno.test("what limits a run: what the user says, else the memory of a machine that computes on its CPU", () => {
  assert.deepEqual(limitOf(1.5, false, 5e9), { bytes: 1.5e9, reason: "--memory 1.5" });
  assert.equal(limitOf(0, false, 5e9), null);
  assert.equal(limitOf(0, true, null), null);
  assert.equal(limitOf(0, true, 5e9)?.bytes, 5e9 - 3e8);
});

Deno.test("an adapter without room is a run that is too large", async () => {
  const { capabilities } = await testDevice();
  const options = { config, model, initialize: true, console: { line: () => {}, status: () => {}, write: () => {} } };
  const refused = await withWaysOut(new OutOfMemoryError("A GPU has no memory for slot 3", 3e7), options, capabilities);
  assert.match(String(refused), /^UserError: Cannot train: A GPU has no memory for slot 3; .*--micro-batch/);
  const other = new Error("another");
  assert.equal(await withWaysOut(other, options, capabilities), other);
});
