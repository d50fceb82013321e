/** HellaSwag: reading, scoring by hand-made losses, and texts packed into batches. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { UserError } from "../../model/errors.ts";
import type { DenseBatch } from "../../model/batch.ts";
import { loadTokenizer } from "../../model/tokenizer.ts";
import { hellaswag, readQuestions } from "../../train/hellaswag.ts";
import { packTexts, type Scorer } from "../../train/scorer.ts";

const tokenizer = await loadTokenizer("bytes");

/** A model whose loss of a token after another is given; it checks what it is asked. */
function scorer(lossOf: (before: number, target: number) => number, { rows = 64, contextLength = 64 } = {}): Scorer {
  return {
    rows,
    contextLength,
    losses({ tokens, targets, positions, starts }: DenseBatch) {
      assert.equal(tokens.length, rows);
      positions.forEach((position, row) => assert.equal(row - starts[row], position));
      assert.ok(positions.every((position) => position < contextLength));
      return Promise.resolve(Float32Array.from(targets, (target, row) => target < 0 ? 0 : lossOf(tokens[row], target)));
    },
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
}

const code = (letter: string) => tokenizer.encode(letter)[0];

Deno.test("the sum picks the likelier ending, the mean the likelier token by token", async () => {
  // a costs 1, b costs 0.8, a space 0.1: "a" sums to 1.1 and "bb" to 1.7; by the token they are 0.55 and 0.57.
  const costs = new Map([[code("a"), 1], [code("b"), 0.8], [code("c"), 0.3], [code(" "), 0.1]]);
  const model = scorer((_, target) => costs.get(target) ?? 9);
  const question = (endings: string[], label: number) => ({ context: "x", endings, label });
  // Sums: ac 1.4, b 0.9, ccc 1.0, z 9.1; means: 0.467, 0.45, 0.25.
  const endings = ["ac", "b", "ccc", "z"];
  const result = await hellaswag([question(endings, 1), question(endings, 2), question(endings, 0)], tokenizer, model);
  assert.deepEqual(result, { questions: 3, accuracy: 1 / 3, accuracyNormalized: 1 / 3 });
  const calls: number[] = [];
  assert.equal(
    (await hellaswag([question(endings, 2)], tokenizer, model, (done) => calls.push(done))).accuracyNormalized,
    1,
  );
  assert.equal((await hellaswag([question(endings, 1)], tokenizer, model)).accuracy, 1);
  assert.deepEqual(calls, [1]);
});

Deno.test("the context counts as what comes before, not as what is scored; the space belongs to the ending", async () => {
  const asked: [number, number][] = [];
  const model = scorer((before, target) => {
    asked.push([before, target]);
    return 1;
  });
  await hellaswag([{ context: "xy", endings: ["a", "bc"], label: 0 }], tokenizer, model);
  const [x, y, a, b, c, space] = ["x", "y", "a", "b", "c", " "].map(code);
  assert.deepEqual(asked, [[y, space], [space, a], [y, space], [space, b], [b, c]]);
  assert.ok(asked.every(([before]) => before !== x));
});

Deno.test("of a text longer than the context the last tokens count", async () => {
  const model = scorer(() => 1, { rows: 8, contextLength: 8 });
  const long = { context: "x".repeat(20), endings: ["ab", "y".repeat(30)], label: 0 };
  const result = await hellaswag([long], tokenizer, model);
  assert.equal(result.accuracy, 1);
});

Deno.test("texts are packed as documents of their own, in as few batches as order allows", () => {
  const text = (length: number, scored: number) => ({ tokens: Uint32Array.from({ length }, (_, i) => i + 1), scored });
  const packed = packTexts([text(4, 1), text(5, 4), text(3, 2)], 8);
  assert.equal(packed.length, 2);
  const [{ batch, sums }] = packed;
  assert.deepEqual([...batch.tokens], [1, 2, 3, 1, 2, 3, 4, 0]);
  assert.deepEqual([...batch.targets], [-100, -100, 4, 2, 3, 4, 5, -100]);
  assert.deepEqual([...batch.positions], [0, 1, 2, 0, 1, 2, 3, 0]);
  assert.deepEqual([...batch.starts], [0, 0, 0, 3, 3, 3, 3, 7]);
  assert.equal(batch.validTargets, 5);
  assert.deepEqual(sums(Float32Array.from([0, 0, 1, 2, 3, 4, 5, 0])), [1, 14]);
  assert.throws(() => packTexts([text(10, 1)], 8), /Cannot score 10 tokens at once: a batch has 8 rows/);
});

Deno.test("the file is read strictly, and a wrong line is named", async () => {
  const folder = await Deno.makeTempDir();
  const path = join(folder, "h.jsonl");
  const good = {
    ind: 4,
    activity_label: "Roof",
    ctx_a: "A man.",
    ctx: "A man. He",
    endings: ["sits.", "runs."],
    label: 1,
  };
  await Deno.writeTextFile(path, `${JSON.stringify(good)}\n\n${JSON.stringify({ ...good, label: "0" })}\n`);
  assert.deepEqual(await readQuestions(path), [
    { context: "A man. He", endings: ["sits.", "runs."], label: 1 },
    { context: "A man. He", endings: ["sits.", "runs."], label: 0 },
  ]);
  const wrong: [unknown, RegExp][] = [
    [{ ...good, label: 2 }, /line 2: label is 2, wanted 0 to 1/],
    [{ ...good, label: "" }, /label is ""/],
    [{ ...good, ctx: undefined }, /wanted the fields ctx/],
    [{ ...good, endings: ["one"] }, /endings/],
    ["{", /line 2/],
    [null, /line 2/],
  ];
  for (const [line, message] of wrong) {
    await Deno.writeTextFile(path, `${JSON.stringify(good)}\n${line === "{" ? "{" : JSON.stringify(line)}\n`);
    await assert.rejects(readQuestions(path), (error) => error instanceof UserError && message.test(error.message));
  }
  await Deno.writeTextFile(path, "\n");
  await assert.rejects(readQuestions(path), /holds no question/);
  await assert.rejects(readQuestions(join(folder, "none")), /Cannot read .*none: No such file/);
  await Deno.remove(folder, { recursive: true });
});
