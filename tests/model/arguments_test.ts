/** Flags and config files by a table: what is taken, and the one line that says what isn't. */
import assert from "node:assert/strict";
import {
  checkObject,
  choice,
  closest,
  flag,
  helpText,
  integer,
  number,
  parseFlags,
  text,
  texts,
} from "../../model/arguments.ts";
import { UserError } from "../../model/errors.ts";

const table = {
  data: text("", "where the data is"),
  input: texts("what to read"),
  nLayer: integer(4, "blocks", { min: 1, max: 100 }),
  learningRate: number(1e-3, "peak"),
  schedule: choice(["cosine", "linear"], "cosine", "shape"),
  resume: flag("go on"),
};

function refuses(run: () => unknown, message: RegExp): void {
  assert.throws(run, (error) => {
    assert.ok(error instanceof UserError);
    assert.equal(error.exitCode, 2);
    assert.match(error.message, message);
    assert.doesNotMatch(error.message, /\n/);
    return true;
  });
}

Deno.test("flags give what was written and nothing else", () => {
  const args = [
    "--n-layer",
    "12",
    "--learning-rate=3e-4",
    "--input",
    "a",
    "--input",
    "b",
    "--resume",
    "--schedule",
    "linear",
  ];
  const { values, help } = parseFlags(table, args);
  assert.deepEqual(values, { nLayer: 12, learningRate: 3e-4, input: ["a", "b"], resume: true, schedule: "linear" });
  assert.equal(help, false);
  assert.deepEqual(parseFlags(table, []).values, {});
  assert.deepEqual(parseFlags(table, ["--resume", "--no-resume", "--n-layer", "1", "--n-layer", "2"]).values, {
    resume: false,
    nLayer: 2,
  });
  assert.deepEqual(parseFlags(table, ["--data=--odd"]).values, { data: "--odd" });
  assert.deepEqual(parseFlags(table, ["--data", "--", "x"], { positionals: true }).values, { data: "--" });
  assert.deepEqual(parseFlags(table, ["RUN", "--n-layer", "1"], { positionals: true }).positionals, ["RUN"]);
  assert.equal(parseFlags(table, ["-h"]).help, true);
});

Deno.test("a wrong flag is refused in one line with a hint", () => {
  refuses(() => parseFlags(table, ["--n-layers", "3"]), /^Unknown flag --n-layers: did you mean --n-layer\?$/);
  refuses(() => parseFlags(table, ["--frobnicate"]), /^Unknown flag --frobnicate; --help lists the flags$/);
  refuses(() => parseFlags(table, ["--learn", "1"]), /did you mean --learning-rate/);
  refuses(() => parseFlags(table, ["-x"]), /Unknown flag -x/);
  refuses(() => parseFlags(table, ["--n-layer"]), /^--n-layer needs a value: a whole number from 1 to 100$/);
  refuses(() => parseFlags(table, ["--data", "--resume"]), /--data needs a value/);
  for (const bad of ["x", "1.5", "0", "101", "", "-3", "Infinity", "0x10"]) {
    refuses(
      () => parseFlags(table, [`--n-layer=${bad}`]),
      /^--n-layer: found .*, wanted a whole number from 1 to 100$/,
    );
  }
  refuses(() => parseFlags(table, ["--learning-rate", "-1"]), /found -1, wanted a number from 0/);
  refuses(() => parseFlags(table, ["--schedule", "cosin"]), /wanted cosine or linear; did you mean cosine\?/);
  refuses(() => parseFlags(table, ["--resume=yes"]), /--resume takes no value/);
  refuses(() => parseFlags(table, ["--no-data", "x"]), /Unknown flag --no-data/);
  refuses(() => parseFlags(table, ["stray"]), /found "stray" on its own/);
});

Deno.test("a config file is checked field by field", () => {
  assert.deepEqual(checkObject(table, { nLayer: 3, "learning-rate": 0.5 }, "c.json"), { nLayer: 3, learningRate: 0.5 });
  refuses(
    () => checkObject(table, { nlayers: 3 }, "c.json"),
    /^Cannot use c.json: unknown field "nlayers": did you mean nLayer\?$/,
  );
  refuses(() => checkObject(table, { nLayer: "3" }, "c.json"), /^c.json: nLayer: found "3", wanted a whole number/);
  refuses(() => checkObject(table, { resume: 1 }, "c.json"), /wanted true or false/);
  refuses(() => checkObject(table, [], "c.json"), /no JSON object/);
  refuses(() => checkObject(table, { input: ["a", 1] }, "c.json"), /c.json: input/);
});

Deno.test("help names every field with its default", () => {
  const help = helpText("Usage", table);
  for (const part of ["--n-layer N", "[4]", "--schedule cosine|linear", "--resume ", "--learning-rate X", "[0.001]"]) {
    assert.ok(help.includes(part), part);
  }
  assert.ok(help.split("\n").every((line) => line.length <= 100));
});

Deno.test("the closest name is one a slip away", () => {
  assert.equal(closest("lerning-rate", ["learning-rate", "data"]), "learning-rate");
  assert.equal(closest("zzz", ["learning-rate", "data"]), undefined);
});
