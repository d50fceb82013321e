/** The tune command: what it asks of a learner, and the list of what was found. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { createConsole } from "../../train/console.ts";
import type { LearnerOptions } from "../../train/learner.ts";
import { tuneCommand } from "../../train/tune_command.ts";
import { openFakeLearner } from "./fake_learner.ts";

async function command(...args: string[]): Promise<{ printed: string; asked: LearnerOptions | undefined }> {
  let asked: LearnerOptions | undefined;
  const console = createConsole({ print: () => {} });
  const printed = await tuneCommand(args, {
    openLearner: (options) => {
      asked = options;
      return openFakeLearner(options);
    },
    console,
  });
  return { printed, asked };
}

Deno.test("tune takes train's flags, and has no time limit of its own", async () => {
  const size = ["--n-embd", "8", "--n-head", "1", "--vocabulary-size", "300"];
  const { asked } = await command(...size);
  assert.equal(asked!.model.vocab_size, 300);
  assert.equal(asked!.config.microBatch, 8);
  assert.deepEqual([asked!.config.tune, asked!.config.tuneSeconds, asked!.kernels], ["cached", Infinity, undefined]);
  const full = (await command(...size, "--tune", "full", "--tune-seconds", "5")).asked!;
  assert.deepEqual([full.config.tune, full.config.tuneSeconds], ["full", 5]);
  assert.equal((await command("--n-embd", "8", "--n-head", "1", "--tokenizer", "bytes")).asked!.model.vocab_size, 257);
  await assert.rejects(command("--tune", "off"), { name: "UserError", exitCode: 2 });
  assert.match((await command("--help")).printed, /deno task tune --list/);
});

Deno.test("tune --list prints calls with their rates, slowest first", async () => {
  const folder = await Deno.makeTempDir();
  const before = Deno.env.get("WGPT_CACHE");
  Deno.env.set("WGPT_CACHE", folder);
  try {
    assert.match((await command("--list")).printed, /^No tuned kernels in .*: run `deno task tune`\n$/);
    const winner = { winner: "a", tried: 2, offered: "b", bytes: 3e6, flops: 8e9 };
    const winners = {
      "small (4) f32": { ...winner, kernel: "small kernel", milliseconds: 0.25, defaultMilliseconds: 0.25 },
      'large (8, 8) f32 {"form":"nt","bias":false,"accumulate":true}': {
        ...winner,
        kernel: "large kernel",
        milliseconds: 2,
        defaultMilliseconds: 3,
      },
    };
    const file = { version: 1, identity: { name: "some adapter", deno: "9.9.9" }, winners };
    await Deno.writeTextFile(join(folder, "some.json"), JSON.stringify(file));
    const lines = (await command("--list")).printed.split("\n");
    assert.equal(lines[0], "some adapter, Deno 9.9.9");
    assert.match(lines[1], /^ *ms +GFLOP\/s +GB\/s +default's ms +gain +call$/);
    assert.match(lines[2], /^2\.000 +4000\.0 +1\.5 +3\.000 +1\.50 +large \(8, 8\) f32; form nt, accumulate$/);
    assert.match(lines[3], /^ +by large kernel$/);
    assert.match(lines[4], /^0\.250 +32000\.0 +12\.0 +0\.250 +1\.00 +small \(4\) f32$/);
    assert.match(lines[5], /^ +by small kernel$/);
    assert.deepEqual(JSON.parse((await command("--list", "--json")).printed), [file]);
  } finally {
    if (before === undefined) Deno.env.delete("WGPT_CACHE");
    else Deno.env.set("WGPT_CACHE", before);
    await Deno.remove(folder, { recursive: true });
  }
});
