/** Paged attention: every candidate against f64, its writes, and its agreement with dense attention. */
import assert from "node:assert/strict";
import { attention } from "../../kernels/attention.ts";
import { type Call, Graph } from "../../kernels/gpu/graph.ts";
import { compile } from "../../kernels/gpu/program.ts";
import { createStore } from "../../kernels/gpu/store.ts";
import { headsIn } from "../../kernels/heads.ts";
import { NO_SLOT, pagedAttention, writeKeyValue } from "../../kernels/paged_attention.ts";
import { assertClose } from "../close.ts";
import { checkOp, noise, randomF32, testDevice } from "../harness.ts";
import * as reference from "../reference/paged_attention.ts";

interface Case {
  readonly heads: number;
  readonly keyHeads: number;
  readonly width: number;
  readonly blockSize: number;
  /** Sequence and position of each row. */
  readonly rows: readonly (readonly [sequence: number, position: number])[];
  /** Heads before the queries in each row of the tensor they lie in. */
  readonly after?: number;
}

const SEQUENCES = 3;
const BLOCKS = 24;

/** Seven decode rows between two pieces of prefill. */
const mixed: Case["rows"] = [
  ...Array.from({ length: 9 }, (_, i) => [1, 20 + i] as const),
  ...Array.from({ length: 7 }, (_, i) => [i % SEQUENCES, 40 * i + 1] as const),
  ...Array.from({ length: 5 }, (_, i) => [2, i] as const),
];

const cases: Record<string, Case> = {
  "prefill and decode mixed": { heads: 4, keyHeads: 4, width: 64, blockSize: 16, rows: mixed },
  "grouped heads 4:2, width 80": { heads: 4, keyHeads: 2, width: 80, blockSize: 16, rows: mixed },
  "grouped heads 8:1, width 32, blocks of 12": { heads: 8, keyHeads: 1, width: 32, blockSize: 12, rows: mixed },
  "one decode row, width 128": { heads: 2, keyHeads: 2, width: 128, blockSize: 16, rows: [[1, 383]] },
  "queries within wider rows": { heads: 4, keyHeads: 2, width: 32, blockSize: 16, rows: mixed, after: 24 },
  "one row at position 0, width 16": { heads: 3, keyHeads: 3, width: 16, blockSize: 16, rows: [[2, 0]] },
};

/** Blocks in a scrambled order. */
function scrambled(): Uint32Array {
  const order = noise(SEQUENCES * BLOCKS, 5);
  return Uint32Array.from(order.map((_, i) => i).sort((a, b) => order[a] - order[b]));
}

for (const [name, { heads, keyHeads, width, blockSize, rows, after = 0 }] of Object.entries(cases)) {
  Deno.test(`paged attention: ${name}`, async () => {
    const scale = 1 / Math.sqrt(width);
    const slots = SEQUENCES * BLOCKS * blockSize;
    const blockTable = scrambled();
    const sequences = Uint32Array.from(rows, ([sequence]) => sequence);
    const positions = Uint32Array.from(rows, ([, position]) => position);
    const shape = { rows: rows.length, heads, keyHeads, width, scale, blockSize, blocks: BLOCKS };
    const cache = [slots, keyHeads, width];
    const candidates = await checkOp({
      build: (_, [q, k, v, table, sequence, position]) =>
        pagedAttention(headsIn(q, [after, heads], width)[1], k, v, table, sequence, position, { scale, blockSize }),
      reference: ([wide, k, v]) => {
        const stride = (after + heads) * width;
        const q = wide.filter((_, i) => i % stride >= after * width);
        return reference.pagedAttention({ ...shape, blockTable, sequences, positions }, q, k, v);
      },
      inputs: [
        {
          shape: [rows.length, (after + heads) * width],
          data: randomF32(rows.length * (after + heads) * width, 1, 2),
          grad: false,
        },
        { shape: cache, data: randomF32(slots * keyHeads * width, 2, 2), grad: false },
        { shape: cache, data: randomF32(slots * keyHeads * width, 3), grad: false },
        { shape: [SEQUENCES, BLOCKS], data: blockTable },
        { shape: [rows.length], data: sequences },
        { shape: [rows.length], data: positions },
      ],
      atol: 2e-6,
    });
    assert.equal(candidates, 3);
  });
}

Deno.test("write key value: rows go to their slots, others stay, NO_SLOT and foreign slots write nothing", async () => {
  const slots = Uint32Array.of(6, NO_SLOT, 0, 8, 3);
  await checkOp({
    build: (_, [cache, x, slots]) => writeKeyValue(cache, x, slots),
    reference: ([cache, x]) => {
      const written = cache.slice();
      slots.forEach((slot, row) => slot < 8 && written.set(x.subarray(row * 24, row * 24 + 24), slot * 24));
      return written;
    },
    inputs: [
      { shape: [8, 2, 12], data: randomF32(8 * 24, 1), grad: false },
      { shape: [5, 2, 12], data: randomF32(5 * 24, 2), grad: false },
      { shape: [5], data: slots },
    ],
    atol: 1e-30,
    rtol: 0,
  });
});

Deno.test("write key value: heads within wider rows", async () => {
  await checkOp({
    build: (_, [cache, x, slots]) => writeKeyValue(cache, headsIn(x, [3, 2], 12)[1], slots),
    reference: ([cache, x]) => {
      const written = cache.slice();
      [4, 1, 7].forEach((slot, row) => written.set(x.subarray(row * 60 + 36, row * 60 + 60), slot * 24));
      return written;
    },
    inputs: [
      { shape: [8, 2, 12], data: randomF32(8 * 24, 1), grad: false },
      { shape: [3, 60], data: randomF32(3 * 60, 2), grad: false },
      { shape: [3], data: Uint32Array.of(4, 1, 7) },
    ],
    atol: 1e-30,
    rtol: 0,
  });
});

Deno.test("paged prefill, and token by token, equals dense attention", async () => {
  const device = await testDevice();
  const [rows, heads, keyHeads, width, blockSize] = [37, 4, 2, 32, 8];
  const scale = 1 / Math.sqrt(width);
  const q = randomF32(rows * heads * width, 1, 2);
  const k = randomF32(rows * keyHeads * width, 2, 2);
  const v = randomF32(rows * keyHeads * width, 3);
  const dense = await (async () => {
    const graph = new Graph();
    const o = attention(
      graph.input("q", [rows, heads, width]),
      graph.input("k", [rows, keyHeads, width]),
      graph.input("v", [rows, keyHeads, width]),
      graph.input("starts", [rows], "u32"),
      { scale },
    );
    using program = await compile(device, graph, { o }, createStore(device));
    program.run({ q, k, v, starts: new Uint32Array(rows) });
    return new Float32Array((await program.read("o"))[0]);
  })();
  const table = Uint32Array.of(3, 1, 4, 0, 2);
  for (const step of [rows, 1]) {
    using store = createStore(device);
    const cache = [table.length * blockSize, keyHeads, width];
    const entries = ["k_cache", "v_cache"].map((name) => ({ name, shape: cache, dtype: "f32" as const }));
    store.allocate("cache", entries);
    const graph = new Graph();
    const slots = graph.input("slots", [step], "u32");
    const [keys, values] = ["k", "v"].map((name) =>
      writeKeyValue(graph.variable(`${name}_cache`, cache), graph.input(name, [step, keyHeads, width]), slots)
    );
    const o = pagedAttention(
      graph.input("q", [step, heads, width]),
      keys,
      values,
      graph.input("table", [1, table.length], "u32"),
      graph.input("sequences", [step], "u32"),
      graph.input("positions", [step], "u32"),
      { scale, blockSize },
    );
    using program = await compile(device, graph, { o }, store);
    const paged = new Float32Array(dense.length);
    for (let from = 0; from < rows; from += step) {
      const positions = Uint32Array.from({ length: step }, (_, i) => from + i);
      program.run({
        q: q.subarray(from * heads * width, (from + step) * heads * width),
        k: k.subarray(from * keyHeads * width, (from + step) * keyHeads * width),
        v: v.subarray(from * keyHeads * width, (from + step) * keyHeads * width),
        slots: positions.map((p) => table[Math.floor(p / blockSize)] * blockSize + p % blockSize),
        table,
        sequences: new Uint32Array(step),
        positions,
      });
      paged.set(new Float32Array((await program.read("o"))[0]), from * heads * width);
    }
    assertClose(paged, dense, { atol: 1e-6, rtol: 1e-6 }, `${step} rows a step`);
  }
});

Deno.test("paged attention refuses shapes it can't serve", () => {
  const graph = new Graph();
  const u32 = (name: string, ...shape: number[]) => graph.input(name, shape, "u32");
  const build = (q: number[], cache: number[], blockSize = 16) => () =>
    pagedAttention(
      graph.input(`q${q}`, q),
      graph.input(`k${cache}`, cache),
      graph.input(`v${cache}`, cache),
      u32("table", 1, 4),
      u32("sequences", 5),
      u32("positions", 5),
      { scale: 1, blockSize },
    );
  assert.throws(build([5, 4, 64], [64, 3, 64]), /^RangeError: Cannot apply paged_attention .*multiple of key heads/);
  assert.throws(build([5, 4, 130], [64, 4, 130]), /multiple of 4 up to 128/);
  assert.throws(build([6, 4, 64], [64, 4, 64]), /\(rows\) u32/);
  assert.throws(build([5, 4, 64], [64, 4, 32]), /agree in width/);
  assert.throws(build([5, 4, 64], [64, 4, 64], 0), /1 or more positions/);
  assert.throws(
    () => writeKeyValue(graph.input("cache", [8, 2, 16]), graph.input("x", [5, 2, 12]), u32("slots", 5)),
    RangeError,
  );
});

Deno.test("paged attention offers no kernel whose loops the driver would end", async () => {
  const { capabilities } = await testDevice();
  const offered = (positions: number, loopIterations: number) => {
    const graph = new Graph();
    const cache = graph.input("cache", [64, 2, 128]);
    const table = graph.input("table", [1, positions / 16], "u32");
    const [sequences, places] = ["sequences", "positions"].map((name) => graph.input(name, [1], "u32"));
    const options = { scale: 1, blockSize: 16 };
    const q = graph.input("q", [1, 2, 128]);
    const call = pagedAttention(q, cache, cache, table, sequences, places, options).source as Call;
    return call.op.kernels(call, { ...capabilities, cpu: true, loopIterations }).map(([{ label }]) => label);
  };
  assert.ok(offered(512, 50_000).some((label) => label.includes("plain")));
  assert.ok(!offered(1024, 50_000).some((label) => label.includes("plain")));
  assert.ok(offered(65_536, 50_000).length > 0);
  assert.throws(
    () => offered(1024, 30),
    /^RangeError: Cannot attend to 1024 positions: this adapter's loops end after 30/,
  );
});
