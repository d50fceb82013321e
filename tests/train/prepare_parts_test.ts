/** prepare by parts: merged they are the same bytes as one whole run; what doesn't belong together is refused. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { prepareCommand } from "../../train/prepare_command.ts";
import { readManifest } from "../../train/manifest.ts";
import type { PrepareOptions } from "../../train/prepare.ts";
import { mergeParts } from "../../train/prepare_merge.ts";
import { preparePart } from "../../train/prepare_part.ts";
import { documentsOfPart, partFolder } from "../../train/prepare_parts.ts";
import { type Piece, piecesOfPart } from "../../train/prepare_pieces.ts";
import { contentOf, documentsOf, inFolder, parquet, prepareBytes, writeFiles } from "./prepared.ts";

const child = new URL("./prepare_child.ts", import.meta.url).pathname;
const root = new URL("../../", import.meta.url).pathname;

/** Documents of all formats, one across several shards, and files with nothing in them. */
async function writeInput(folder: string): Promise<void> {
  const texts = Array.from({ length: 400 }, (_, index) => `document ${index} ${"word ".repeat(index * 7919 % 60)}`);
  await writeFiles(folder, {
    "in/a.parquet": parquet(texts.slice(0, 100), { rowGroup: 7 }),
    "in/b.jsonl": texts.slice(100, 300).map((text) => JSON.stringify({ text })).join("\n") + '\n{"text": ""}\n',
    "in/bad.txt": Uint8Array.of(0xff),
    ...Object.fromEntries(texts.slice(300).map((text, index) => [`in/c/${100 + index}.txt`, text])),
    "in/d.txt": "long ".repeat(5000),
    "in/empty.txt": "",
    "in/z.jsonl": '{"text": "last"}\n{"text": 5}\n',
  });
}

function optionsFor(folder: string, out: string, more: Partial<PrepareOptions> = {}): PrepareOptions {
  return {
    input: [join(folder, "in")],
    tokenizer: "bytes",
    context: 7,
    out: join(folder, out),
    validation: 0.2,
    workers: 2,
    pieceBytes: 1000,
    shardTokens: 8000,
    skipBad: true,
    quiet: true,
    ...more,
  };
}

const merge = (folder: string, out: string) =>
  mergeParts({ out: join(folder, out), quiet: true, checkpointSeconds: 0 });

Deno.test("a plan's pieces are in one part each, in order, in parts of like size, however many", () => {
  const pieces = Array.from({ length: 100 }, (_, i): Piece => ({ source: i, from: 0, to: 1, bytes: 50 + i % 7 }));
  const total = pieces.reduce((sum, { bytes }) => sum + bytes, 0);
  for (const count of [1, 2, 3, 7, 99, 100, 150]) {
    const parts = Array.from({ length: count }, (_, i) => piecesOfPart(pieces, { number: i + 1, of: count }));
    assert.deepEqual(parts.flat(), pieces);
    for (const part of parts) {
      const bytes = part.reduce((sum, { bytes }) => sum + bytes, 0);
      assert(Math.abs(bytes - total / count) <= 56, `${bytes} of ${total} in ${count} parts`);
    }
  }
  const without = pieces.map((piece) => ({ ...piece, bytes: 0 }));
  assert.deepEqual(piecesOfPart(without, { number: 1, of: 3 }), without);
});

Deno.test("parts merged are the same bytes as one whole run", () =>
  inFolder(async (folder) => {
    await writeInput(folder);
    const whole = await prepareBytes(join(folder, "whole"), [], optionsFor(folder, "whole"));
    assert(whole.splits.validation.documents > 40 && whole.splits.train.shards.length > 5);
    assert.deepEqual([whole.skipped.documents, whole.skipped.rowGroups], [2, 0]);
    const wanted = contentOf(join(folder, "whole"));
    for (const count of [1, 3, 8]) {
      const out = `by ${count}`;
      const numbers = Array.from({ length: count }, (_, i) => (i * 5 + 2) % count + 1); // not in order
      const parts = await Promise.all(
        numbers.map((number) => preparePart(optionsFor(folder, out), { number, of: count })),
      );
      assert.equal(parts.reduce((sum, { documents }) => sum + documents.documents, 0), 402);
      assert.deepEqual(await merge(folder, out), whole);
      assert.deepEqual(contentOf(join(folder, out)), wanted);
    }
    assert.deepEqual(await merge(folder, "by 3"), whole); // once more changes nothing
    await prepareBytes(join(folder, "by 3"), [], optionsFor(folder, "by 3"));
    assert.deepEqual(contentOf(join(folder, "by 3")), wanted);
  }));

Deno.test("parts are read on from any document", () =>
  inFolder(async (folder) => {
    await writeInput(folder);
    const part = { number: 2, of: 2 };
    const made = await preparePart(optionsFor(folder, "out"), part);
    const read = (first: number) => [...documentsOfPart(partFolder(join(folder, "out"), part), made, first)];
    const all = read(0);
    assert.equal(all.length, made.documents.documents);
    for (const first of [1, 17, all.length - 3, all.length - 1, all.length]) {
      assert.deepEqual(read(first), all.slice(first), `from ${first}`);
    }
  }));

function start(options: PrepareOptions, part?: unknown): Deno.ChildProcess {
  const permissions = ["--allow-read", "--allow-write", "--allow-env", "--allow-sys"];
  const more = part === undefined ? [] : [JSON.stringify(part)];
  return new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-check", ...permissions, child, JSON.stringify(options), ...more],
    cwd: root,
    stdout: "piped",
    stderr: "piped",
  }).spawn();
}

/** Kills the process once its state has changed so often. @returns whether it was still running. */
async function killAfter(process: Deno.ChildProcess, progress: string, changes: number): Promise<boolean> {
  let ended = false;
  process.status.then(() => ended = true);
  let last = "";
  while (!ended && changes > 0) {
    await new Promise((resolve) => setTimeout(resolve, 2));
    const text = await Deno.readTextFile(progress).catch(() => "");
    if (text !== last) changes--;
    last = text;
  }
  if (!ended) process.kill("SIGKILL");
  const { success } = await process.output();
  return !success;
}

Deno.test("a part that was killed, and a merge that was, go on to the same bytes", () =>
  inFolder(async (folder) => {
    await writeInput(folder);
    await prepareBytes(join(folder, "whole"), [], optionsFor(folder, "whole"));
    const options = optionsFor(folder, "out", { checkpointSeconds: 0 });
    await preparePart(options, { number: 1, of: 2 });
    const part = { number: 2, of: 2 };
    const progress = join(partFolder(options.out, part), "progress.json");
    assert(await killAfter(start(options, part), progress, 4), "it had ended before it was killed");
    await assert.rejects(merge(folder, "out"), {
      name: "UserError",
      message: /part 2 of 2 isn't finished; go on with it with --shard 2\/2$/,
    });
    await preparePart(options, part);
    for (const changes of [3, 6, 9]) {
      assert(await killAfter(start(options, "merge"), join(options.out, "progress.json"), changes), "it had ended");
    }
    await assert.rejects(readManifest(options.out), /it holds parts; join them with `deno task prepare --merge --out /);
    await merge(folder, "out");
    assert.deepEqual(contentOf(options.out), contentOf(join(folder, "whole")));
  }));

Deno.test("a missing part, parts made differently and damaged ones are refused, and stay", () =>
  inFolder(async (folder) => {
    await writeInput(folder);
    const refused = async (out: string, message: RegExp) => {
      const before = contentOf(join(folder, out));
      await assert.rejects(merge(folder, out), { name: "UserError", message });
      assert.deepEqual(contentOf(join(folder, out)), before);
    };
    const make = (out: string, number: number, of: number, more: Partial<PrepareOptions> = {}) =>
      preparePart(optionsFor(folder, out, more), { number, of });
    await make("gap", 1, 3);
    await make("gap", 3, 3);
    await refused("gap", /^Cannot merge parts in .*gap: part 2 of 3 is missing; make it with --shard 2\/3$/);
    await assert.rejects(make("gap", 1, 2), /it holds parts of 3, wanted parts of 2; choose another folder/);
    await assert.rejects(make("gap", 1, 3, { seed: 1 }), /it was made with seed 0, wanted 1/);
    await assert.rejects(prepareBytes(join(folder, "gap"), join(folder, "in")), /it holds parts; prepare those/);
    await make("seeds", 1, 2);
    await make("seeds", 2, 2, { seed: 1 });
    await refused("seeds", /part 1 was made with seed 0, part 2 with seed 1; remove the folders/);
    await make("pieces", 1, 2);
    await make("pieces", 2, 2, { pieceBytes: 900 });
    await refused("pieces", /part 1 was made with pieceBytes 1000, part 2 with pieceBytes 900/);
    await make("sources", 1, 2);
    await writeFiles(folder, { "in/zz.txt": "one more" });
    await make("sources", 2, 2);
    await refused("sources", /part 1 was made with no such file, part 2 with .*in\/zz\.txt of 8 bytes/);
    await make("damaged", 1, 2);
    await make("damaged", 2, 2);
    const shard = join(partFolder(join(folder, "damaged"), { number: 2, of: 2 }), "train-00000.bin");
    const bytes = await Deno.readFile(shard);
    bytes[100] ^= 1;
    await Deno.writeFile(shard, bytes);
    await assert.rejects(merge(folder, "damaged"), /train-00000\.bin: it isn't what was prepared; remove its folder/);
    await Deno.remove(join(shard, ".."), { recursive: true });
    await assert.rejects(merge(folder, "damaged"), /part 2 of 2 is missing/);
    await make("damaged", 2, 2);
    await merge(folder, "damaged");
    await assert.rejects(make("damaged", 1, 2), /its data is whole already/);
    await assert.rejects(merge(folder, "in"), /there are none; make them with deno task prepare --shard/);
  }));

Deno.test("a source that changed between two parts that read it is found out", () =>
  inFolder(async (folder) => {
    const text = (last: string) => Array.from({ length: 50 }, (_, i) => `{"text": "${i}${last}"}\n`).join("");
    await writeFiles(folder, { "in/a.jsonl": text("x") });
    const options = optionsFor(folder, "out", { pieceBytes: 100 });
    await preparePart(options, { number: 1, of: 2 });
    await writeFiles(folder, { "in/a.jsonl": text("y") });
    await preparePart(options, { number: 2, of: 2 });
    await assert.rejects(merge(folder, "out"), /part 1 was made with .*a\.jsonl of 790 bytes \(\w{12}\), part 2 with/);
  }));

Deno.test("more parts than pieces, and the command's flags", () =>
  inFolder(async (folder) => {
    await writeFiles(folder, { "in/a.txt": "first", "in/b.txt": "second" });
    const [input, out] = [join(folder, "in"), join(folder, "out")];
    const flags = ["--input", input, "--tokenizer", "bytes", "--context", "7", "--out", out, "--quiet"];
    for (const shard of ["1/4", "2/4", "3/4", "4/4"]) {
      await prepareCommand([...flags, "--validation", "0", "--shard", shard]);
    }
    await prepareCommand(["--merge", "--out", out, "--quiet"]);
    assert.deepEqual(documentsOf(out, await readManifest(out)), ["first", "second"]);
    const cases: [string[], RegExp][] = [
      [[...flags, "--shard", "0/4"], /^--shard: found "0\/4", wanted i\/n with i from 1 to n, as 2\/8$/],
      [[...flags, "--shard", "5/4"], /^--shard: found "5\/4"/],
      [[...flags, "--shard", "half"], /^--shard: found "half"/],
      [[...flags, "--shard", "1/20000"], /^Cannot prepare part 1 of 20000: .* at most 10000$/],
      [[...flags, "--merge"], /^Give --merge with --out, --quiet and --json alone/],
      [["--merge"], /^Give --out/],
    ];
    for (const [args, message] of cases) {
      await assert.rejects(prepareCommand(args), { name: "UserError", message, exitCode: 2 });
    }
  }));
