/** Weights kept in halves: what is loaded, what it computes, what it gives back. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { fromF32, toF32 } from "../../model/float_formats.ts";
import { loadModel } from "../../model/load.ts";
import { packRows, unpackRows } from "../../model/packed_rows.ts";
import { createAdamW } from "../../train/optimizer.ts";
import { assertClose } from "../close.ts";
import { testDevice } from "../harness.ts";
import { gpt2Logits } from "../reference/gpt2.ts";

const FIXTURES = new URL("../fixtures/", import.meta.url).pathname;
const FORMATS = { bf16: "BF16", f16: "F16" } as const;
const tokens = [[4, 32, 31, 7, 0, 60]];
const targets = [[32, 31, 7, -100, 60, 4]];

for (const dtype of ["bf16", "f16"] as const) {
  const rounded = (values: Float32Array) => toF32({ dtype: FORMATS[dtype], data: fromF32(values, FORMATS[dtype]) });

  Deno.test(`weights in ${dtype}: matrices are rounded and take half, logits are those of the rounded weights`, async () => {
    const device = await testDevice();
    for (const folder of ["gpt2-tiny", "gpt2-erf-bf16", "gpt2-erf-f16"]) {
      using whole = await loadModel(device, join(FIXTURES, folder));
      using halves = await loadModel(device, join(FIXTURES, folder), { dtype });
      const expected = new Map([...await whole.parameters()].map(([key, values]) => {
        const { shape } = whole.declared.find(({ name }) => whole.key(name) === key)!;
        return [key, shape.length > 1 ? rounded(values) : values];
      }));
      assert.deepEqual(await halves.parameters(), expected);
      for (const { name, shape } of halves.declared) {
        const ratio = shape.length > 1 ? 2 : 1;
        assert.equal(halves.store.get(name)!.size * ratio, whole.store.get(name)!.size, name);
      }
      const full = new Map(
        [...expected].map(([key, values]) => [key.replace(/^(?!transformer\.)/, "transformer."), values]),
      );
      const logits = await halves.logits(tokens);
      // Activations stay f32, so what is allowed is what f32 is.
      assertClose(logits, gpt2Logits(halves.config, full, tokens[0]), { atol: 2e-5, rtol: 2e-5 }, folder);
    }
  });

  Deno.test(`weights in ${dtype}: gradients are near those of the rounded weights in f32`, async () => {
    const device = await testDevice();
    const folder = await Deno.makeTempDir();
    using halves = await loadModel(device, join(FIXTURES, "gpt2-tiny"), { dtype });
    await halves.save(join(folder, "saved"));
    using whole = await loadModel(device, join(folder, "saved"));
    assert.deepEqual(await whole.parameters(), await halves.parameters());
    const [found, expected] = [
      await halves.lossAndGradients(tokens, targets),
      await whole.lossAndGradients(tokens, targets),
    ];
    assert.ok(Math.abs(found.loss - expected.loss) < 2e-5);
    // Only the gradient that comes into a product is rounded, eight times on the longest way: by u each.
    const u = dtype === "bf16" ? 2 ** -9 : 2 ** -12;
    for (const [key, values] of found.gradients) {
      const wanted = expected.gradients.get(key)!;
      const difference = Math.hypot(...values.map((value, i) => value - wanted[i]));
      assert.ok(difference < 8 * u * Math.hypot(...wanted), `${key}: ${difference / Math.hypot(...wanted)}`);
    }
    await Deno.remove(folder, { recursive: true });
  });

  Deno.test(`rows packed as ${dtype}, odd and even`, () => {
    for (const columns of [1, 2, 3, 8]) {
      const values = Float32Array.from({ length: 5 * columns }, (_, i) => i / 3 - 2);
      const packed = packRows(values, columns, dtype);
      assert.equal(packed.byteLength, 5 * 4 * Math.ceil(columns / 2));
      assert.deepEqual(unpackRows(packed.slice().buffer, columns, dtype), rounded(values));
    }
  });
}

Deno.test("weights in halves aren't trained, and other formats aren't loaded", async () => {
  const device = await testDevice();
  const folder = join(FIXTURES, "gpt2-tiny");
  using model = await loadModel(device, folder, { dtype: "bf16" });
  assert.throws(
    () => createAdamW(model, { lr: 1e-3 }),
    /Cannot train weights kept as bf16: load the model as f32 and give a precision instead/,
  );
  const other = { dtype: "f64" } as unknown as { dtype: "f32" };
  await assert.rejects(loadModel(device, folder, other), /Cannot load .* as f64: weights are kept as/);
});
