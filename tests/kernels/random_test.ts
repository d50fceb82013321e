/** Philox by its published answers, on the GPU and here; uniform and normal numbers by their moments. */
import assert from "node:assert/strict";
import { apply, type Op, type Tensor } from "../../kernels/gpu/graph.ts";
import { type Counter, type Key, normals, philox, PHILOX_WGSL, uniformOf } from "../../kernels/random.ts";
import { philoxReference } from "../reference/random.ts";
import { assertClose } from "../close.ts";
import { runGraph } from "./run_graph.ts";

/** The known answers that Random123 ships: counter, key, result. */
const KNOWN: readonly (readonly [Counter, Key, Counter])[] = [
  [[0, 0, 0, 0], [0, 0], [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]],
  [
    [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff],
    [0xffffffff, 0xffffffff],
    [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
  ],
  [
    [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
    [0xa4093822, 0x299f31d0],
    [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
  ],
];

/** Counters and keys with carries, high bits and zeros among their words. */
function words(count: number): Uint32Array {
  let state = 1;
  return Uint32Array.from({ length: count }, (_, i) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return i % 11 === 0 ? 0xffff_ffff : i % 7 === 0 ? 0 : i % 5 === 0 ? state >>> 16 : state;
  });
}

const CASES = 999;

/** Rows of counter, key and two unused words → rows of four random words. */
const philoxOp: Op<undefined> = {
  name: "philox",
  infer: ([x]) => [{ shape: [x.shape[0], 4], dtype: "u32" }, { shape: [x.shape[0]], dtype: "f32" }],
  kernels: ({ inputs: [x], outputs: [y, uniform] }) => [[{
    label: "philox",
    wgsl: `${PHILOX_WGSL}
@group(0) @binding(0) var<storage, read> x: array<vec4u>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4u>;
@group(0) @binding(2) var<storage, read_write> uniform_numbers: array<f32>;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  if (id.x >= ${x.shape[0]}u) { return; }
  y[id.x] = philox(x[2u * id.x], x[2u * id.x + 1u].xy);
  uniform_numbers[id.x] = uniform_of(y[id.x].x);
}`,
    workgroups: [Math.ceil(x.shape[0] / 64), 1, 1],
    bindings: [{ tensor: x, access: "read" }, ...[y, uniform].map(written)],
  }]],
  cost: () => ({ flops: 0, bytes: 0 }),
};

function written(tensor: Tensor) {
  return { tensor, access: "read_write" } as const;
}

Deno.test("Philox gives the published answers", () => {
  for (const [counter, key, expected] of KNOWN) {
    assert.deepEqual(philox(counter, key), expected);
    assert.deepEqual(philoxReference(counter, key), expected);
  }
});

Deno.test("Philox on the GPU, here and in integers of any size: the same bits", async () => {
  const all = words(CASES * 8);
  KNOWN.forEach(([counter, key], i) => all.set([...counter, ...key], i * 8));
  const { bits, numbers } = await runGraph((graph) => {
    const [bits, numbers] = apply(philoxOp, [graph.input("x", [CASES, 8], "u32")], undefined);
    return { bits, numbers };
  }, { x: all });
  const made = new Uint32Array(bits);
  const uniforms = new Float32Array(numbers);
  for (let i = 0; i < CASES; i++) {
    const [a, b, c, d, e, f] = all.subarray(i * 8);
    const expected = philox([a, b, c, d], [e, f]);
    assert.deepEqual(expected, philoxReference([a, b, c, d], [e, f]));
    assert.deepEqual([...made.subarray(i * 4, i * 4 + 4)], expected);
    assert.equal(uniforms[i], uniformOf(expected[0]));
  }
});

Deno.test("uniform numbers lie in [0, 1) and are f32", () => {
  assert.equal(uniformOf(0), 0);
  assert.equal(uniformOf(255), 0);
  assert.equal(uniformOf(0x8000_0000), 0.5);
  assert.equal(uniformOf(0xffff_ffff), Math.fround(1 - 2 ** -24));
});

/** Mean of a power. */
function moment(values: Float32Array, power: number): number {
  return values.reduce((sum, value) => sum + value ** power, 0) / values.length;
}

Deno.test("normal numbers have a normal distribution's moments and tails", () => {
  const count = 100_000;
  const values = normals(42, 3, count);
  // Four standard errors of each: variances of the means of x, x², x³, x⁴ are 1, 2, 15 and 96 over the count.
  [[1, 0, 1], [2, 1, 2], [3, 0, 15], [4, 3, 96]].forEach(([power, expected, variance]) => {
    const error = Math.abs(moment(values, power) - expected);
    assert.ok(error < 4 * Math.sqrt(variance / count), `moment ${power} is off by ${error}`);
  });
  for (const [limit, share] of [[1, 0.3173105], [2, 0.0455003], [3, 0.0026998]]) {
    const outside = values.filter((value) => Math.abs(value) > limit).length;
    const allowed = 4 * Math.sqrt(count * share * (1 - share));
    assert.ok(Math.abs(outside - share * count) < allowed, `${outside} of ${count} outside ${limit}`);
  }
  assert.ok(values.every(Number.isFinite));
  const covariance = values.reduce((sum, value, i) => sum + value * (values[i + 1] ?? 0), 0) / count;
  assert.ok(Math.abs(covariance) < 4 / Math.sqrt(count), "neighbours are independent");
});

Deno.test("normal numbers are Box and Muller's of Philox, in every quarter turn", () => {
  const count = 40_000;
  const values = normals(11, 5, count);
  const quarters = [0, 0, 0, 0];
  for (let i = 0; i < count; i += 2) {
    const bits = philoxReference([Math.floor(i / 4), 5, 0, 0], [11, 0]).slice(i % 4, i % 4 + 2);
    const radius = Math.sqrt(-2 * Math.log((bits[0] + 1) / 2 ** 32));
    const angle = 2 * Math.PI * bits[1] / 2 ** 32;
    quarters[Math.floor(bits[1] / 2 ** 30)]++;
    // One rounding to f32; the angle itself is rounded in f64.
    assertClose(values.subarray(i, i + 2), [radius * Math.cos(angle), radius * Math.sin(angle)], {
      atol: 1e-14,
      rtol: 2 ** -24 * (1 + 1e-6),
    });
  }
  assert.ok(quarters.every((times) => times > count / 10));
});

Deno.test("normal numbers depend on seed, stream and place alone", () => {
  const values = normals(7, 1, 103);
  assert.deepEqual(normals(7, 1, 103), values);
  assert.deepEqual(normals(7, 1, 50), values.subarray(0, 50));
  assert.notDeepEqual(normals(8, 1, 103), values);
  assert.notDeepEqual(normals(7, 2, 103), values);
  assert.notDeepEqual(normals(7 + 2 ** 32, 1, 103), values, "the seed's upper word counts");
  assert.equal(normals(7, 1, 0).length, 0);
});
