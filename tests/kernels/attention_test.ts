/** Attention: every candidate, forward and backward, against f64; documents, grouped heads, dropout, determinism. */
import assert from "node:assert/strict";
import { attentionWithLse } from "../../kernels/attention.ts";
import { keepFactor } from "../../kernels/attention_shared.ts";
import { type Device, openDevice } from "../../kernels/gpu/device.ts";
import { differentiate } from "../../kernels/gpu/grad.ts";
import { Graph, type Tensor } from "../../kernels/gpu/graph.ts";
import { compile } from "../../kernels/gpu/program.ts";
import { createStore } from "../../kernels/gpu/store.ts";
import { type Heads, headsIn, headsOf } from "../../kernels/heads.ts";
import { assertClose } from "../close.ts";
import { checkOp, randomF32, testDevice } from "../harness.ts";
import * as reference from "../reference/attention.ts";

interface Case {
  readonly heads: number;
  readonly keyHeads: number;
  readonly width: number;
  /** Lengths of documents, in order. */
  readonly documents: readonly number[];
  readonly dropout?: { readonly rate: number; readonly site: number };
  /** Operands whose heads lie side by side in one tensor. */
  readonly packed?: readonly ("q" | "k" | "v")[];
}

interface Data {
  readonly q: Float32Array;
  readonly k: Float32Array;
  readonly v: Float32Array;
  readonly dy: Float32Array;
  readonly starts: Uint32Array;
  readonly counter: Uint32Array;
}

const OUTPUTS = ["o", "lse", "dq", "dk", "dv"] as const;
type Result = Record<typeof OUTPUTS[number], Float32Array>;

function rowsOf({ documents }: Case): number {
  return documents.reduce((sum, length) => sum + length, 0);
}

function startsOf(documents: readonly number[]): Uint32Array {
  let at = 0;
  return Uint32Array.from(documents.flatMap((length) => {
    at += length;
    return Array.from({ length }, () => at - length);
  }));
}

function dataOf(test: Case): Data {
  const { heads, keyHeads, width, documents } = test;
  const rows = rowsOf(test);
  return {
    q: randomF32(rows * heads * width, 1, 2),
    k: randomF32(rows * keyHeads * width, 2, 2),
    v: randomF32(rows * keyHeads * width, 3),
    dy: randomF32(rows * heads * width, 4),
    starts: startsOf(documents),
    counter: Uint32Array.of(7, 3, 0, 0),
  };
}

function scaleOf({ width }: Case): number {
  return 1 / Math.sqrt(width);
}

/** Columns [from, to) of each row. */
function columns(x: Float32Array, rows: number, from: number, to: number): Float32Array {
  const stride = x.length / rows;
  return Float32Array.from({ length: rows * (to - from) }, (_, i) => {
    return x[Math.floor(i / (to - from)) * stride + from + i % (to - from)];
  });
}

/** Parts (N, C) side by side. */
function joined(parts: readonly Float32Array[], rows: number): Float32Array {
  const slice = (part: Float32Array, row: number) =>
    part.subarray(row * part.length / rows, (row + 1) * part.length / rows);
  return Float32Array.from(
    Array.from({ length: rows }, (_, row) => parts.flatMap((part) => [...slice(part, row)])).flat(),
  );
}

/** Runs forward and backward by one candidate; null where there are not so many. */
async function run(test: Case, candidate: number, data = dataOf(test), on?: Device): Promise<Result | null> {
  const { heads, keyHeads, width, dropout, packed = [] } = test;
  const device = on ?? await testDevice();
  const rows = rowsOf(test);
  const graph = new Graph();
  const counts = { q: heads, k: keyHeads, v: keyHeads };
  const packedCounts = packed.map((name) => counts[name]);
  const packedWidth = packedCounts.reduce((sum, count) => sum + count * width, 0);
  const together = graph.input("packed", [rows, packedWidth || 1]);
  const parts = packed.length > 0 ? headsIn(together, packedCounts, width) : [];
  const operand = (name: "q" | "k" | "v") =>
    packed.includes(name) ? parts[packed.indexOf(name)] : graph.input(name, [rows, counts[name], width]);
  const [q, k, v] = [operand("q"), operand("k"), operand("v")];
  const dy = graph.input("dy", [rows, heads, width]);
  const starts = graph.input("starts", [rows], "u32");
  const counter = dropout && graph.input("counter", [4], "u32");
  const { o, lse } = attentionWithLse(q, k, v, starts, {
    scale: scaleOf(test),
    dropout: dropout && { ...dropout, counter: counter! },
  });
  const tensors = [...new Set([q, k, v].map((operand) => headsOf(operand).tensor))];
  const gradients = differentiate([{ tensor: o, gradient: dy }], tensors);
  const gradientOf = (operand: Tensor | Heads) => gradients[tensors.indexOf(headsOf(operand).tensor)];
  const outputs = { o, lse, dq: gradientOf(q), dk: gradientOf(k), dv: gradientOf(v) };
  let offered = true;
  using store = createStore(device);
  using program = await compile(device, graph, outputs, store, {
    choose(_, candidates) {
      offered &&= candidate < candidates.length;
      return offered ? candidate : candidates.length - 1;
    },
  });
  if (!offered) return null;
  const { counter: words, ...rest } = data;
  const fed = Object.fromEntries(Object.entries(rest).filter(([name]) => !packed.includes(name as "q")));
  const all = packed.length > 0 ? joined(packed.map((name) => data[name]), rows) : new Float32Array(rows);
  program.run({ ...fed, packed: all, ...(dropout && { counter: words }) });
  const read = (await program.read(...OUTPUTS)).map((buffer) => new Float32Array(buffer));
  const result = Object.fromEntries(OUTPUTS.map((name, i) => [name, read[i]])) as Result;
  for (const [name, part] of [["dq", q], ["dk", k], ["dv", v]] as const) {
    const { first, heads, width } = headsOf(part);
    result[name] = columns(result[name], rows, first, first + heads * width);
  }
  return result;
}

async function candidates(test: Case, data = dataOf(test), on?: Device): Promise<Result[]> {
  const results: Result[] = [];
  for (;;) {
    const result = await run(test, results.length, data, on);
    if (result === null) return results;
    results.push(result);
  }
}

function expected(
  test: Case,
  data: Data,
  factor?: reference.AttentionReference["factor"],
): Record<string, Float64Array> {
  const [q, k, v] = [data.q, data.k, data.v].map((values) => Float64Array.from(values));
  const shape = { ...test, rows: rowsOf(test), scale: scaleOf(test), starts: data.starts, factor };
  const gradients = reference.attentionGradients(shape, q, k, v, data.dy);
  return { o: reference.attention(shape, q, k, v), lse: reference.attentionLse(shape, q, k), ...gradients };
}

/** Factors of probabilities, where the case drops any. */
function maskOf({ dropout }: Case, { counter }: Data): reference.AttentionReference["factor"] {
  return dropout && ((row, key, head) => keepFactor(dropout, counter, row, key, head));
}

const dropped: Case = { heads: 4, keyHeads: 4, width: 16, documents: [30, 1, 44], dropout: { rate: 0.25, site: 3 } };

const cases: Record<string, Case> = {
  "three documents, width 64": { heads: 4, keyHeads: 4, width: 64, documents: [30, 1, 44] },
  "grouped heads 4:2, width 32, short documents": {
    heads: 4,
    keyHeads: 2,
    width: 32,
    documents: [1, 1, 5, 17, 1, 31, 2, 12],
  },
  "grouped heads 8:1, width 80": { heads: 8, keyHeads: 1, width: 80, documents: [20, 27] },
  "width 128": { heads: 2, keyHeads: 1, width: 128, documents: [70] },
  "one long document, width 16": { heads: 4, keyHeads: 4, width: 16, documents: [203] },
  "q, k and v in one tensor, grouped heads 4:2, width 32": {
    heads: 4,
    keyHeads: 2,
    width: 32,
    documents: [20, 27],
    packed: ["q", "k", "v"],
  },
  "v, then k in one tensor, width 20": { heads: 2, keyHeads: 2, width: 20, documents: [33], packed: ["v", "k"] },
  "q, k and v in one tensor, with dropout": { ...dropped, packed: ["q", "k", "v"] },
  "documents of one row, width 20": { heads: 2, keyHeads: 2, width: 20, documents: Array(19).fill(1) },
};

for (const [name, test] of Object.entries(cases)) {
  Deno.test(`attention: ${name}`, async () => {
    const data = dataOf(test);
    const wanted = expected(test, data, maskOf(test, data));
    const results = await candidates(test, data);
    assert.ok(results.length >= 3, `${results.length} candidates`);
    results.forEach((result, i) => {
      for (const output of OUTPUTS) {
        assertClose(result[output], wanted[output], { atol: 4e-6, rtol: 1e-5 }, `candidate ${i}, ${output}`);
      }
    });
  });
}

Deno.test("attention: gradients are those of finite differences, returned and added", async () => {
  const test: Case = { heads: 4, keyHeads: 2, width: 32, documents: [9, 4] };
  const { q, k, v, starts } = dataOf(test);
  const rows = rowsOf(test);
  const candidates = await checkOp({
    build: (_, [q, k, v, starts]) => attentionWithLse(q, k, v, starts, { scale: scaleOf(test) }).o,
    reference: ([q, k, v]) => reference.attention({ ...test, rows, scale: scaleOf(test), starts }, q, k, v),
    inputs: [
      { shape: [rows, 4, 32], data: q },
      { shape: [rows, 2, 32], data: k },
      { shape: [rows, 2, 32], data: v },
      { shape: [rows], data: starts },
    ],
    atol: 3e-6,
  });
  assert.ok(candidates >= 3);
});

Deno.test("attention: keys that are values too get both gradients", async () => {
  const test: Case = { heads: 2, keyHeads: 2, width: 16, documents: [9] };
  const { q, k, starts } = dataOf(test);
  await checkOp({
    build: (_, [q, k, starts]) => attentionWithLse(q, k, k, starts, { scale: 0.25 }).o,
    reference: ([q, k]) => reference.attention({ ...test, rows: 9, scale: 0.25, starts }, q, k, k),
    inputs: [{ shape: [9, 2, 16], data: q }, { shape: [9, 2, 16], data: k }, { shape: [9], data: starts }],
    atol: 3e-6,
  });
});

Deno.test("attention: scores in the thousands stay finite and right", async () => {
  const test: Case = { heads: 4, keyHeads: 4, width: 64, documents: [40, 9] };
  const data = dataOf(test);
  data.q.forEach((value, i) => data.q[i] = value * 800);
  const wanted = expected(test, data);
  for (const [i, { o }] of (await candidates(test, data)).entries()) {
    assertClose(o, wanted.o, { atol: 3e-3, rtol: 1e-3 }, `candidate ${i}`);
  }
});

Deno.test("attention: documents packed give what they give alone", async () => {
  const packed: Case = { heads: 4, keyHeads: 4, width: 64, documents: [11, 40, 26] };
  const data = dataOf(packed);
  const results = await candidates(packed, data);
  let from = 0;
  for (const length of packed.documents) {
    const part = (values: Float32Array, size: number) => values.slice(from * size, (from + length) * size);
    const alone = { ...packed, documents: [length] };
    const single = await candidates(alone, {
      ...data,
      q: part(data.q, 256),
      k: part(data.k, 256),
      v: part(data.v, 256),
      dy: part(data.dy, 256),
      starts: new Uint32Array(length),
    });
    results.forEach((result, i) => {
      for (const name of ["o", "dq", "dk", "dv"] as const) {
        // Not to the bit: where a tile of keys begins depends on the rows before the document.
        const tolerance = { atol: 2e-6, rtol: 2e-6 };
        assertClose(part(result[name], 256), single[i][name], tolerance, `candidate ${i}, ${name} from ${from}`);
      }
    });
    from += length;
  }
});

Deno.test("attention: blocks outside of a row's document are not read", async () => {
  const test: Case = { heads: 4, keyHeads: 4, width: 64, documents: [64, 64] };
  const data = dataOf(test);
  for (const values of [data.q, data.k, data.v, data.dy]) values.fill(NaN, 0, 64 * 256);
  for (const [i, result] of (await candidates(test, data)).entries()) {
    for (const name of ["o", "dq", "dk", "dv"] as const) {
      assert.ok(
        result[name].subarray(64 * 256).every(Number.isFinite),
        `candidate ${i}: ${name} saw the other document`,
      );
    }
  }
});

// The second begins in the middle of a random block of four.
for (const first of [0, 1002]) {
  Deno.test(`attention: dropout drops the same in every kernel, rows from ${first} of the update`, async () => {
    const data = { ...dataOf(dropped), counter: Uint32Array.of(9, 4, first, 0) };
    const wanted = expected(dropped, data, maskOf(dropped, data));
    for (const [i, result] of (await candidates(dropped, data)).entries()) {
      for (const output of OUTPUTS) {
        assertClose(result[output], wanted[output], { atol: 4e-6, rtol: 1e-5 }, `candidate ${i}, ${output}`);
      }
    }
  });
}

Deno.test("attention: dropout's masks don't depend on how rows are cut into calls", async () => {
  const whole = await run(dropped, 0);
  const data = dataOf(dropped);
  const part = (values: Float32Array) => values.slice(31 * 64);
  const tail = await run({ ...dropped, documents: [44] }, 0, {
    ...data,
    q: part(data.q),
    k: part(data.k),
    v: part(data.v),
    dy: part(data.dy),
    starts: new Uint32Array(44),
    counter: Uint32Array.of(7, 3, 31, 0),
  });
  assertClose(tail!.o, part(whole!.o), { atol: 2e-6, rtol: 2e-6 }, "o");
});

Deno.test("attention: dropout drops its rate, otherwise for another seed, update, site or head", () => {
  const [rows, rate] = [300, 0.1];
  const mask = (site: number, seed: number, update: number, head: number) =>
    Array.from(
      { length: rows * rows },
      (_, i) => keepFactor({ rate, site }, [seed, update, 0], Math.floor(i / rows), i % rows, head) === 0 ? 1 : 0,
    );
  const base = mask(1, 2, 3, 4);
  const share = (values: readonly number[]) => values.reduce((sum: number, value) => sum + value, 0) / values.length;
  // Three standard deviations.
  assert.ok(Math.abs(share(base) - rate) < 3 * Math.sqrt(rate * (1 - rate)) / rows);
  for (const other of [mask(0, 2, 3, 4), mask(1, 1, 3, 4), mask(1, 2, 4, 4), mask(1, 2, 3, 5)]) {
    const both = share(base.map((value, i) => value * other[i]));
    assert.ok(Math.abs(both - rate * rate) < 4 * rate / rows, `${both}`);
  }
});

/** A device whose subgroups are workgroups of `lanes` invocations that shuffle through workgroup memory. */
async function emulated(lanes: number): Promise<Device> {
  const device = await openDevice();
  const pipeline = device.pipeline.bind(device);
  const shuffles = `var<private> me: u32;
var<workgroup> board: array<u32, ${lanes}>;
fn shuffle_u32(x: u32, i: u32) -> u32 { workgroupBarrier(); board[me] = x; workgroupBarrier(); return board[i]; }
fn shuffle(x: f32, i: u32) -> f32 { return bitcast<f32>(shuffle_u32(bitcast<u32>(x), i)); }
fn shuffle_xor(x: f32, i: u32) -> f32 { return shuffle(x, me ^ i); }
@compute`;
  device.pipeline = (label, text, entries) => {
    if (!text.includes("subgroup")) return pipeline(label, text, entries);
    const code = text.replaceAll("subgroupShuffle(first", "shuffle_u32(first").replaceAll(
      "subgroupShuffle(",
      "shuffle(",
    )
      .replaceAll("subgroupShuffleXor(", "shuffle_xor(").replace("subgroup_invocation_id", "local_invocation_index")
      .replace("let last", "me = lane; let last").replace("@compute", shuffles);
    return pipeline(label, code, entries);
  };
  Object.defineProperty(device, "capabilities", { value: { ...device.capabilities, cpu: true, subgroupSize: lanes } });
  return device;
}

// Compiled without a cache, the emulation takes half a minute: one size stands for all (4, 16 and 64 were right too).
Deno.test("attention: right with subgroups of 32", async () => {
  using device = await emulated(32);
  const test: Case = { heads: 2, keyHeads: 1, width: 4, documents: [20, 1, 24] };
  const data = dataOf(test);
  const wanted = expected(test, data);
  const result = await run(test, 0, data, device);
  for (const output of OUTPUTS) assertClose(result![output], wanted[output], { atol: 4e-6, rtol: 1e-5 }, output);
});

/** A device whose invocations may make so many loop iterations. */
async function looping(loopIterations: number): Promise<Device> {
  const device = await openDevice();
  Object.defineProperty(device, "capabilities", { value: { ...device.capabilities, loopIterations } });
  return device;
}

Deno.test("attention: where loops end early, few heads of a group at a time, kernels left out, or a clear error", async () => {
  const test = cases["grouped heads 8:1, width 80"];
  const data = dataOf(test);
  const wanted = expected(test, data);
  using device = await looping(350);
  const results = await candidates(test, data, device);
  assert.ok(results.length >= 1 && results.length < (await candidates(test, data)).length);
  for (const [i, result] of results.entries()) {
    for (const output of OUTPUTS) {
      assertClose(result[output], wanted[output], { atol: 4e-6, rtol: 1e-5 }, `candidate ${i}, ${output}`);
    }
  }
  using brief = await looping(40);
  await assert.rejects(run(test, 0, data, brief), {
    name: "RangeError",
    message: "Cannot attend within 47 rows: this adapter's loops end after 40 iterations; use shorter documents",
  });
});

// lavapipe would end the plain kernel's loops at row 980 or so.
Deno.test("attention: every candidate is right to the end of a long document of wide heads", async () => {
  const test: Case = { heads: 1, keyHeads: 1, width: 128, documents: [1100] };
  const data = dataOf(test);
  const wanted = expected(test, data);
  for (const [i, result] of (await candidates(test, data)).entries()) {
    for (const output of OUTPUTS) {
      assertClose(result[output], wanted[output], { atol: 1e-5, rtol: 1e-5 }, `candidate ${i}, ${output}`);
    }
  }
});

Deno.test("attention: the same bits each time", async () => {
  for (const test of [cases["three documents, width 64"], dropped]) {
    assert.deepEqual(await run(test, 0), await run(test, 0));
  }
});

Deno.test("attention refuses shapes it can't serve", () => {
  const graph = new Graph();
  const build = (q: number[], k: number[], rate = 0) => () =>
    attentionWithLse(
      graph.input(`q${q}`, q),
      graph.input(`k${k}`, k),
      graph.input(`k${k}`, k),
      graph.input("starts", [8], "u32"),
      { scale: 1, dropout: { rate, site: 0, counter: graph.input("counter", [4], "u32") } },
    );
  assert.throws(build([8, 4, 64], [8, 3, 64]), /^RangeError: Cannot apply attention to .*multiple of key heads/);
  assert.throws(build([8, 4, 66], [8, 4, 66]), /multiple of 4 up to 128/);
  assert.throws(build([8, 4, 132], [8, 4, 132]), /multiple of 4 up to 128/);
  assert.throws(build([9, 4, 64], [9, 4, 64]), /starts is \(rows\) u32/);
  assert.throws(build([8, 4, 64], [9, 4, 64]), /agree in rows/);
  assert.throws(build([8, 4, 64], [8, 4, 64], 1), /dropout rate is in \[0, 1\), not 1/);
  assert.doesNotThrow(build([8, 4, 64], [8, 4, 64]));
  const qkv = graph.input("qkv", [8, 96]);
  const starts = graph.input("starts", [8], "u32");
  const [q, k, v] = headsIn(qkv, [4, 1, 1], 16);
  assert.doesNotThrow(() => attentionWithLse(q, k, v, starts, { scale: 1 }));
  assert.throws(
    () => attentionWithLse(q, k, k, starts, { scale: 1 }),
    /heads of one tensor together are all of its columns/,
  );
  assert.throws(() => headsIn(qkv, [4, 1], 16), {
    name: "RangeError",
    message: "Cannot cut (8, 96) f32 into 4 + 1 heads of 16: a row has 96",
  });
});
