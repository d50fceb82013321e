/** Models loaded for serving, in every format of weights, against f32 models of what those weights stand for. */
import assert from "node:assert/strict";
import { defaultSampling, type Engine } from "../../model/generate.ts";
import { type Gpt2Config, gpt2Defaults } from "../../model/gpt2_config.ts";
import { createModel, loadModel } from "../../model/load.ts";
import { Model } from "../../model/model.ts";
import { PlainGenerator } from "../../model/plain_generator.ts";
import { weightFormats } from "../../model/scope.ts";
import { createEngine } from "../../serve/engine.ts";
import { assertClose } from "../close.ts";
import { testDevice } from "../harness.ts";

/** Widths that groups of 32 divide, and a vocabulary that no tile does; weights large enough that tokens differ. */
const config: Gpt2Config = {
  ...gpt2Defaults,
  vocab_size: 193,
  n_positions: 64,
  n_embd: 64,
  n_head: 2,
  n_layer: 2,
  initializer_range: 0.3,
};
// Logits are sums of size 10 over some hundred f32 roundings in each of eight products.
const TOLERANCE = { atol: 1e-4, rtol: 1e-5 };
const tokens = Array.from({ length: 40 }, (_, i) => (i * 37 + 11) % config.vocab_size);

async function generated(engine: Engine): Promise<number[]> {
  const made: number[] = [];
  const sampling = { ...defaultSampling, temperature: 0, maxTokens: 12 };
  for await (const { token } of engine.generate(Uint32Array.from(tokens), sampling)) made.push(token);
  return made;
}

for (const weights of weightFormats) {
  Deno.test(`a model for serving in ${weights}: logits, engine and weights read back`, async () => {
    const device = await testDevice();
    using source = createModel(device, config, { seed: 5 });
    using served = new Model(device, config, { weights, serving: true });
    for (const parameter of served.declared) served.write(parameter, await source.read(parameter));
    using plain = createModel(device, config, { seed: 6 });
    for (const parameter of served.declared) {
      const [original, standing] = [await source.read(parameter), await served.read(parameter)];
      plain.write(parameter, standing);
      if (weights === "f32" || parameter.shape.length === 1) assert.deepEqual(standing, original, parameter.name);
      const largest = original.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
      const step = { f32: 0, bf16: 2 ** -9, f16: 2 ** -12, int8: 0.5 / 127, int4: 1 / 8 }[weights];
      assertClose(
        Float64Array.from(standing),
        Float64Array.from(original),
        { atol: step * largest, rtol: step },
        parameter.name,
      );
    }
    const expected = await plain.logits([tokens]);
    assertClose(Float64Array.from(await served.logits([tokens])), Float64Array.from(expected), TOLERANCE, "logits");
    await using engine = createEngine(served);
    await using slow = new PlainGenerator(plain);
    assert.deepEqual(await generated(engine), await generated(slow));
    await assert.rejects(served.lossAndGradients([tokens], [tokens]), /model loaded for serving/);
  });
}

Deno.test("a checkpoint loads as integers, sizes that no group divides too", async () => {
  const device = await testDevice();
  const folder = "tests/fixtures/gpt2-tiny";
  using model = await loadModel(device, folder);
  using small = await loadModel(device, folder, { dtype: "int8" });
  const [expected, found] = [await model.logits([[4, 32, 31]]), await small.logits([[4, 32, 31]])];
  const largest = expected.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  const distance = expected.reduce((most, value, i) => Math.max(most, Math.abs(value - found[i])), 0);
  assert.ok(distance > 0 && distance < 0.05 * largest, `int8 moves logits of ${largest} by ${distance}`);
  await assert.rejects(loadModel(device, folder, { dtype: "int2" as "int8" }), /f32, bf16, f16, int8, int4/);
});
