/** The bench command: what it prints, as a table and as JSON, and what it refuses. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import type { Bench } from "../../bench/harness.ts";
import { toJson } from "../../bench/main.ts";
import { formatBench } from "../../bench/table.ts";
import { checkProduct, operand, stepFlops, STEPS } from "../../bench/work.ts";

const bench: Bench = {
  name: "peers",
  adapter: "llvmpipe (LLVM 15.0.6, 256 bits)",
  driver: "65541:0",
  config: { repeats: 3, peers: { "PyTorch": "1.13.0a0, 2 threads, libopenblasp-r0.3.21.so" } },
  results: [
    {
      case: "mini-v2048",
      repeats_ms: [700, 600, 800],
      median_ms: 700,
      tokens_per_second: 1462.857,
      gflops: 34.5,
      peak_device_bytes: 168e6,
      ratio: { "PyTorch": 0.95, "one stream": 7.2 },
    },
    { case: "mini-v2048, PyTorch", repeats_ms: [665], median_ms: 665, tokens_per_second: 1539.8, gflops: 36.3 },
  ],
  failed: [{ case: "mini-v2048, jax-js WebGPU", reason: "not installed" }],
};

Deno.test("JSON has the fields that are promised, and what failed in its config", () => {
  const json = JSON.parse(JSON.stringify(toJson(bench)));
  assert.deepEqual(Object.keys(json).sort(), ["adapter", "config", "deno", "driver", "name", "results"]);
  assert.equal(json.deno, Deno.version.deno);
  assert.deepEqual(json.config.failed, bench.failed);
  assert.deepEqual(json.results, bench.results);
  assert.deepEqual(toJson({ ...bench, failed: [] }).config, bench.config);
});

Deno.test("the table fits 120 columns and puts a ratio beside its peer", () => {
  const text = formatBench(bench);
  const lines = text.split("\n");
  assert.ok(lines.every((line) => line.length <= 120), text);
  assert.match(lines.find((line) => line.startsWith("mini-v2048, PyTorch"))!, /0\.95$/);
  assert.match(lines.find((line) => line.startsWith("mini-v2048 "))!, /one stream 7\.20$/);
  assert.match(text, /not measured: mini-v2048, jax-js WebGPU: not installed/);
  assert.match(text, /95 %/);
  assert.doesNotMatch(text, /MB\/s/); // nobody has that rate
});

Deno.test("a long case name is wrapped", () => {
  const name = "a case whose name is long ".repeat(8);
  const lines = formatBench({ ...bench, results: [{ ...bench.results[0], case: name }] }).split("\n");
  assert.ok(lines.every((line) => line.length <= 120));
  assert.ok(lines.join("").includes("long"));
});

Deno.test("a product is checked to the last bit", () => {
  const product = { m: 4, k: 6, n: 2 };
  const [a, b] = [operand(24, 1), operand(12, 2)];
  const at = (form: string, row: number, column: number, i: number) =>
    a[form === "tn" ? i * 4 + row : row * 6 + i] * b[form === "nt" ? column * 6 + i : i * 2 + column];
  for (const form of ["nn", "nt", "tn"] as const) {
    const c = Float32Array.from({ length: 8 }, (_, at_) => {
      return Array.from({ length: 6 }, (_, i) => at(form, at_ >> 1, at_ & 1, i)).reduce((sum, x) => sum + x, 0);
    });
    checkProduct({ ...product, form }, a, b, c);
    c[7] += 2 ** -20;
    assert.throws(() => checkProduct({ ...product, form }, a, b, c), /Wrong product 4x6x2/);
  }
  assert.ok(operand(1000, 3).every((x) => Math.abs(x) <= 0.5 && Number.isInteger(x * 16)));
});

Deno.test("a step's operations are those of its products", () => {
  const gpt2 = STEPS.find(({ name }) => name === "gpt2")!;
  // 6 N per token and half of a square of attention: 394 GFLOP with the whole squares (12 layers, 512 tokens).
  const squares = 6 * 512 * 12 * 256 * 768;
  assert.equal(Math.round((stepFlops(gpt2) + squares) / 1e9), 394);
});

async function command(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  const main = fileURLToPath(new URL("../../bench/main.ts", import.meta.url));
  const allowed = ["--no-prompt", "--allow-read", "--allow-env"];
  const output = await new Deno.Command(Deno.execPath(), { args: ["run", ...allowed, main, ...args] }).output();
  const [stdout, stderr] = [output.stdout, output.stderr].map((bytes) => new TextDecoder().decode(bytes));
  return { code: output.code, stdout, stderr };
}

Deno.test("unknown benches, cases and flags end with code 2 and one line", async () => {
  const refused = [[], ["speed"], ["constructor"], ["matmul", "step"], ["step", "--cases", "mini"], [
    "step",
    "--repeats",
    "-1",
  ]];
  for (const args of refused) {
    const { code, stdout, stderr } = await command(...args);
    assert.equal(code, 2, args.join(" "));
    assert.equal(stdout, "");
    assert.equal(stderr.trim().split("\n").length, 1, stderr);
  }
});

Deno.test("help names every bench", async () => {
  const { code, stdout } = await command("--help");
  assert.equal(code, 0);
  for (const name of ["matmul", "attention", "step", "tokenizer", "prepare", "peers"]) assert.ok(stdout.includes(name));
});

Deno.test("one short bench from the command line to JSON", async () => {
  const { code, stdout, stderr } = await command("tokenizer", "--case", "a word", "--repeats", "1", "--json");
  assert.equal(code, 0, stderr);
  const json = JSON.parse(stdout.trim().split("\n").at(-1)!);
  assert.equal(json.name, "tokenizer");
  const [ours, theirs] = json.results;
  assert.equal(ours.repeats_ms.length, 1);
  assert.equal(ours.ratio["gpt-tokenizer"], theirs.median_ms / ours.median_ms);
});
