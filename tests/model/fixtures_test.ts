/** The f64 model by plain loops against PyTorch's: the specification and the fixtures prove each other. No GPU. */

import assert from "node:assert/strict";
import { readFolder } from "../../model/checkpoint.ts";
import type { Gpt2Config } from "../../model/gpt2_config.ts";
import { assertClose } from "../close.ts";
import { gpt2Logits, gpt2Loss } from "../reference/gpt2.ts";
import { fixture, readExpected } from "./torch_fixtures.ts";

async function load(folder: string) {
  using checkpoint = await readFolder(fixture(folder));
  const parameters = new Map<string, Float64Array>();
  for (const name of checkpoint.names()) parameters.set(name, Float64Array.from(await checkpoint.readF32(name)));
  return { config: checkpoint.config, prefix: checkpoint.prefix, parameters, expected: await readExpected(folder) };
}

/** Both sides compute in f64; expected logits are then rounded to f32, by at most half of 2^-23 of each value. */
const STORED_F32 = { rtol: 2 ** -24, atol: 1e-11 };

for (const folder of ["gpt2-tiny", "gpt2-erf", "gpt2-head64"]) {
  Deno.test(`${folder}: logits and loss of the f64 reference are PyTorch's`, async () => {
    const { config, parameters, expected } = await load(folder);
    const logits = expected.tokens[0].flatMap((row) => [...gpt2Logits(config, parameters, row)]);
    assertClose(logits, expected.f32("logits")!, STORED_F32, "logits");
    const loss = gpt2Loss(config, parameters, expected.tokens[0], expected.targets[0]);
    assertClose([loss, expected.losses[0]], [expected.loss, expected.loss], { rtol: 1e-12, atol: 0 }, "loss");
  });
}

Deno.test("fixtures: gradients are the slopes of the f64 reference's loss", async () => {
  for (const folder of ["gpt2-tiny", "gpt2-erf"]) {
    const { config, prefix, parameters, expected } = await load(folder);
    for (const [name, values] of parameters) {
      const gradient = expected.f32(`gradient.${prefix}${name.slice("transformer.".length)}`)!;
      const slope = slopeAlong(config, parameters, name, gradient, expected);
      // Along the gradient g the slope is |g|². Central differences err by h² = 1e-8 of the third derivative, which may be some ten
      // times the first; g was rounded to f32 (6e-8), and the losses' own rounding weighs 1e-15 / h.
      const square = gradient.reduce((sum, g) => sum + g * g, 0);
      assert.equal(gradient.length, values.length, name);
      assertClose([slope], [square], { rtol: 1e-6, atol: 0 }, `${folder}: ${name}`);
    }
  }
});

/** Slope of the loss along `direction` by central differences, with a step of 1e-4 in the norm of the parameter's change. */
function slopeAlong(
  config: Gpt2Config,
  parameters: ReadonlyMap<string, Float64Array>,
  name: string,
  direction: Float32Array,
  { tokens, targets }: { readonly tokens: number[][][]; readonly targets: number[][][] },
): number {
  const norm = Math.sqrt(direction.reduce((sum, d) => sum + d * d, 0));
  const h = 1e-4 / norm;
  const moved = (step: number) => {
    const values = parameters.get(name)!.map((value, i) => value + step * direction[i]);
    return gpt2Loss(config, new Map([...parameters, [name, values]]), tokens[0], targets[0]);
  };
  return (moved(h) - moved(-h)) / (2 * h);
}
