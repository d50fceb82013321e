/** prepare interrupted: killed, refused by the disk, changed under its hands. It goes on, or says why it can't. */
import assert from "node:assert/strict";
import { join } from "node:path";
import type { PrepareOptions } from "../../train/prepare.ts";
import { contentOf, documentsOf, inFolder, parquet, prepareBytes, writeFiles } from "./prepared.ts";

const child = new URL("./prepare_child.ts", import.meta.url).pathname;
const root = new URL("../../", import.meta.url).pathname;

/** Two hundred small pieces in several shards of both splits. */
async function writeInput(folder: string): Promise<void> {
  const texts = Array.from({ length: 900 }, (_, index) => `document ${index} ${"word ".repeat(index * 7919 % 60)}`);
  await writeFiles(folder, {
    "in/a.parquet": parquet(texts.slice(0, 300), { rowGroup: 5 }),
    "in/b.jsonl": texts.slice(300, 800).map((text) => JSON.stringify({ text })).join("\n"),
    ...Object.fromEntries(texts.slice(800).map((text, index) => [`in/c/${100 + index}.txt`, text])),
  });
}

function optionsFor(folder: string, out: string): PrepareOptions {
  return {
    input: [join(folder, "in")],
    tokenizer: "bytes",
    context: 7,
    out: join(folder, out),
    validation: 0.1,
    workers: 2,
    pieceBytes: 1000,
    shardTokens: 8000,
    checkpointSeconds: 0,
    quiet: true,
  };
}

function start(options: PrepareOptions, shell = ""): Deno.ChildProcess {
  const run = [
    Deno.execPath(),
    "run",
    "--no-check",
    "--allow-read",
    "--allow-write",
    "--allow-env",
    "--allow-sys",
    child,
  ];
  const [command, ...args] = shell === "" ? run : ["sh", "-c", `${shell}; exec "$@"`, "sh", ...run];
  return new Deno.Command(command, {
    args: [...args, JSON.stringify(options)],
    cwd: root,
    stdout: "piped",
    stderr: "piped",
  }).spawn();
}

async function finished(process: Deno.ChildProcess): Promise<{ code: number; text: string }> {
  const { code, stdout, stderr } = await process.output();
  return { code, text: new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr) };
}

function piecesDone(out: string): number {
  try {
    return JSON.parse(Deno.readTextFileSync(join(out, "progress.json"))).pieces;
  } catch {
    return -1;
  }
}

const pause = (milliseconds: number) => new Promise((resolve) => setTimeout(resolve, milliseconds));

Deno.test("killed again and again, it goes on and gives the same bytes", () =>
  inFolder(async (folder) => {
    await writeInput(folder);
    await prepareBytes(join(folder, "whole"), [], optionsFor(folder, "whole"));
    const whole = contentOf(join(folder, "whole"));
    assert(whole.size > 12, `${whole.size} files`);
    const options = optionsFor(folder, "out");
    let kills = 0;
    for (let done = -1; kills < 6; kills++) {
      const process = start(options);
      const status = process.status;
      let ended = false;
      status.then(() => ended = true);
      while (!ended && piecesDone(options.out) <= done + 4) await pause(3);
      await pause(Math.random() * 40);
      if (ended) {
        assert.deepEqual(await finished(process), { code: 0, text: "" });
        break;
      }
      process.kill("SIGKILL");
      await process.output();
      const now = piecesDone(options.out);
      assert(now > done || now === -1, `${now} pieces after ${done}`);
      done = now;
    }
    assert(kills >= 2, `only ${kills} kills`);
    assert.deepEqual(await finished(start(options)), { code: 0, text: "" });
    const made = contentOf(options.out);
    assert.deepEqual([...made.keys()], [...whole.keys()]);
    assert.deepEqual(made, whole);
  }));

Deno.test("stopped between the last shard and the manifest, it goes back to its checkpoint", () =>
  inFolder(async (folder) => {
    await writeInput(folder);
    const options = optionsFor(folder, "out");
    const states: string[] = [];
    const process = start(options);
    const path = join(options.out, "progress.json");
    for (let ended = false; !ended;) {
      process.status.then(() => ended = true);
      await pause(5);
      const state = await Deno.readTextFile(path).catch(() => "");
      if (state !== "" && state !== states.at(-1)) states.push(state);
    }
    await process.output();
    const whole = contentOf(options.out);
    assert(states.length >= 3, `${states.length} checkpoints seen`);
    for (const state of [states[0], states[states.length >> 1], states.at(-1)!]) {
      await Deno.remove(join(options.out, "manifest.json"));
      await Deno.writeTextFile(path, state);
      await prepareBytes(options.out, [], options);
      assert.deepEqual(contentOf(options.out), whole);
    }
  }));

Deno.test("what is prepared already is kept; other settings, sources or a second process are refused", () =>
  inFolder(async (folder) => {
    await writeFiles(folder, { "in/a.txt": "first", "in/b.txt": "second" });
    const [input, out] = [join(folder, "in"), join(folder, "out")];
    const manifest = await prepareBytes(out, input);
    const content = contentOf(out);
    assert.deepEqual(await prepareBytes(out, input, { workers: 2 }), manifest);
    const refused = async (message: RegExp, options: Partial<PrepareOptions> = {}) => {
      await assert.rejects(prepareBytes(out, input, options), { name: "UserError", message });
      assert.deepEqual(contentOf(out), content);
    };
    await refused(/^Cannot prepare into .*out: it was made with context 7, wanted 8; choose another folder for --out/, {
      context: 8,
    });
    await refused(/made with seed 0, wanted 1/, { seed: 1 });
    await refused(/made with another tokenizer, wanted this one/, { tokenizer: "gpt2" });
    await Deno.utime(join(input, "a.txt"), 1, 1);
    assert.deepEqual(await prepareBytes(out, input), manifest);
    await writeFiles(folder, { "in/a.txt": "FIRST" });
    await refused(/in\/a\.txt changed since it was read/);
    await writeFiles(folder, { "in/a.txt": "first", "in/c.txt": "third" });
    await refused(/it was made without .*c\.txt/);
    await Deno.remove(join(input, "c.txt"));
    await Deno.remove(join(input, "b.txt"));
    await refused(/it was made from .*b\.txt too/);
    const other = join(folder, "other");
    await Deno.mkdir(other);
    using lock = await Deno.open(join(other, "prepare.lock"), { create: true, write: true });
    await lock.lock(true);
    await assert.rejects(prepareBytes(other, input), /another prepare is writing there; wait for it or stop it$/);
  }));

Deno.test("a source repaired after it stopped prepare is read on, one already read must not change", () =>
  inFolder(async (folder) => {
    await writeFiles(folder, { "in/a.txt": "first", "in/b.txt": Uint8Array.of(0xff), "in/c.txt": "third" });
    const [input, out] = [join(folder, "in"), join(folder, "out")];
    await assert.rejects(prepareBytes(out, input, { checkpointSeconds: 0 }), /b\.txt: it is no valid UTF-8/);
    await writeFiles(folder, { "in/a.txt": "FIRST" });
    await assert.rejects(prepareBytes(out, input), /a\.txt changed since it was read/);
    await writeFiles(folder, { "in/a.txt": "first", "in/b.txt": "second" });
    const manifest = await prepareBytes(out, input);
    assert.deepEqual(documentsOf(out, manifest), ["first", "second", "third"]);
  }));

Deno.test("a disk that refuses stops it in one line, and given room it goes on to the same bytes", () =>
  inFolder(async (folder) => {
    await writeInput(folder);
    await prepareBytes(join(folder, "whole"), [], { ...optionsFor(folder, "whole"), shardTokens: 1 << 20 });
    const options = { ...optionsFor(folder, "out"), shardTokens: 1 << 20, checkpointSeconds: 0 };
    const { code, text } = await finished(start(options, "trap '' XFSZ; ulimit -f 100"));
    assert.match(text, /^Cannot write .*train-00000\.bin\.partial: File too large.*\n$/);
    assert.equal(code, 1);
    assert(piecesDone(options.out) > 0);
    await prepareBytes(options.out, [], options);
    assert.deepEqual(contentOf(options.out), contentOf(join(folder, "whole")));
  }));
