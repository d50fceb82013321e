/** The whole model on the GPU, through the library's surface, against PyTorch: logits, loss, every gradient, ten AdamW steps. */

import assert from "node:assert/strict";
import { join } from "node:path";
import { createAdamW, loadModel, openDevice, readSafetensors } from "../../mod.ts";
import { readFolder } from "../../model/checkpoint.ts";
import { toF32 } from "../../model/float_formats.ts";
import { type Gpt2Config, innerSize } from "../../model/gpt2_config.ts";
import { assertClose } from "../close.ts";
import { withFolder } from "./folders.ts";
import { type Expected, fixture, readExpected } from "./torch_fixtures.ts";

/*
 * Tolerances. An f32 operation errs by at most u = 2^-24 of its result. Along a chain of n of them, whose errors are as often up
 * as down, the sum passes λ·√n·u with a probability below 2·exp(-λ²/2) (Higham and Mary 2019); λ = 4 is never passed in practice.
 * Errors of sums go with the size of their terms, so they are measured against a tensor's largest value, not each value.
 * PyTorch's own f32, measured against its f64 on these fixtures, uses 0.1 to 0.3 of these allowances.
 */
const U = 2 ** -24;
const LAMBDA = 4;

/** Roundings on the longest way through the forward pass of rows of T tokens. */
function forwardRoundings(config: Gpt2Config, T: number): number {
  const { n_embd: C, n_head: H, n_layer: L } = config;
  const norm = 2 * C; // mean and variance
  const attention = C + C / H + T + T + C; // c_attn, scores, softmax, mix, c_proj
  const mlp = C + innerSize(config); // c_fc, c_proj
  return L * (norm + attention + norm + mlp) + norm + C;
}

/** What a forward pass and, with `backward`, the way back and the sum over all tokens may err, relative to the largest value. */
function relativeError(
  config: Gpt2Config,
  tokens: readonly number[][],
  backward: boolean,
): number {
  const n = forwardRoundings(config, tokens[0].length);
  return LAMBDA * Math.sqrt(backward ? 2 * n + tokens.flat().length : n) * U;
}

function largest(values: ArrayLike<number>): number {
  return Array.from(values).reduce(
    (most, value) => Math.max(most, Math.abs(value)),
    0,
  );
}

const elements = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1);

for (const folder of ["gpt2-tiny", "gpt2-erf", "gpt2-head64"]) {
  Deno.test(`${folder}: logits, loss and gradients are PyTorch's`, async () => {
    const expected = await readExpected(folder);
    using device = await openDevice();
    using model = await loadModel(device, fixture(folder));
    const [tokens, targets] = [expected.tokens[0], expected.targets[0]];
    const forward = relativeError(model.config, tokens, false);

    const logits = expected.f32("logits")!;
    assertClose(await model.logits(tokens), logits, {
      atol: forward * largest(logits),
      rtol: 0,
    }, "logits");

    const { loss, gradients } = await model.lossAndGradients(tokens, targets);
    assertClose([loss], [expected.loss], {
      atol: forward * largest(logits),
      rtol: 0,
    }, "loss");
    const stored = await readSafetensors(
      join(fixture(folder), "model.safetensors"),
    );
    for (const [name, gradient] of gradients) {
      const shape = stored.get(name)!.shape;
      assert.equal(gradient.length, elements(shape), name);
      checkGradient(
        name,
        shape,
        gradient,
        expected,
        relativeError(model.config, tokens, true),
      );
    }
    const masks = [...stored.keys()].filter((name) => /\.attn\.(bias|masked_bias)$/.test(name));
    assert.equal(gradients.size, stored.size - masks.length);
  });

  Deno.test(`${folder}: ten AdamW steps are PyTorch's`, async () => {
    const expected = await readExpected(folder);
    using device = await openDevice();
    using model = await loadModel(device, fixture(folder));
    using optimizer = createAdamW(model, expected.settings);
    const error = relativeError(model.config, expected.tokens[0], true);
    for (let step = 0; step < expected.losses.length; step++) {
      const { loss, gradNorm } = await optimizer.step(
        expected.tokens[step],
        expected.targets[step],
      );
      assertClose(
        [loss],
        [expected.losses[step]],
        { atol: 0, rtol: error },
        `loss before step ${step}`,
      );
      assertClose([gradNorm], [expected.gradNorms[step]], {
        atol: 0,
        rtol: error,
      }, `gradient norm at step ${step}`);
    }
    for (const [name, values] of await model.parameters()) {
      const stepped = expected.f32(`stepped.${name}`);
      if (stepped !== undefined) {
        checkStepped(name, values, stepped, expected, error);
      }
    }
  });
}

function checkGradient(
  name: string,
  shape: readonly number[],
  gradient: Float32Array,
  expected: Expected,
  error: number,
): void {
  const whole = expected.f32(`gradient.${name}`);
  if (whole !== undefined) {
    assertClose(
      gradient,
      whole,
      { atol: error * largest(whole), rtol: 0 },
      `gradient of ${name}`,
    );
    return;
  }
  const [rows, columns] = shape;
  const atol = error * largest(gradient);
  const kept = expected.f32(`gradientRows.${name}`)!;
  const everySeventh = Array.from(
    { length: kept.length / columns },
    (_, row) => 7 * row * columns,
  )
    .flatMap((begin) => [...gradient.subarray(begin, begin + columns)]);
  assertClose(
    everySeventh,
    kept,
    { atol, rtol: 0 },
    `rows of the gradient of ${name}`,
  );
  const rowSums = new Float64Array(rows);
  const columnSums = new Float64Array(columns);
  gradient.forEach((value, i) => {
    rowSums[Math.floor(i / columns)] += value;
    columnSums[i % columns] += value;
  });
  // Summed exactly, errors of k elements grow by √k.
  const [byRow, byColumn] = [rows, columns].map((_, i) => ({
    atol: atol * Math.sqrt(i === 0 ? columns : rows),
    rtol: 0,
  }));
  assertClose(
    rowSums,
    expected.f32(`gradientRowSums.${name}`)!,
    byRow,
    `row sums of the gradient of ${name}`,
  );
  assertClose(
    columnSums,
    expected.f32(`gradientColumnSums.${name}`)!,
    byColumn,
    `column sums of the gradient of ${name}`,
  );
}

/**
 * A step moves an element by lr·m̂/√v̂, whatever the gradient's size: where that is small against the tensor's largest, its error is
 * magnified. With an error e in each gradient, m̂ and √v̂ err by e each, so a step by at most 2·lr·e/√v̂, and never by more than
 * 2·lr, from one sign to the other. v̂ after step t holds the first gradient g with weight (1-β2)·β2^(t-1) / (1-β2^t), so √v̂ is at
 * least |g| times that weight's root. Each step rounds the parameter twice, for decay and update. Where the first gradient is 0
 * (positions past T), so are all, and only decay moves; but a key's bias adds the same to all scores of a query, so its gradient
 * is 0 by cancellation: its steps are noise of full size in any arithmetic.
 */
function checkStepped(
  name: string,
  values: Float32Array,
  stepped: Float32Array,
  { f32, losses, settings }: Expected,
  error: number,
): void {
  const gradient = f32(`gradient.${name}`)!;
  const e = error * largest(gradient);
  const beta2 = settings.betas[1];
  const cancels = name.endsWith("attn.c_attn.bias");
  assert.equal(values.length, stepped.length, name);
  let used = { share: 0, at: -1 };
  for (let i = 0; i < values.length; i++) {
    let allowed = 0;
    for (let t = 1; t <= losses.length; t++) {
      const weight = (1 - beta2) * beta2 ** (t - 1) / (1 - beta2 ** t);
      const shift = 2 * e / (Math.abs(gradient[i]) * Math.sqrt(weight));
      allowed += 2 * U * Math.abs(stepped[i]) +
        (gradient[i] === 0 && !cancels ? 0 : settings.lr * Math.min(2, shift));
    }
    const share = Math.abs(values[i] - stepped[i]) /
      (allowed + Number.MIN_VALUE);
    if (!(share <= used.share)) used = { share, at: i };
  }
  const at = used.at;
  assert(
    used.share <= 1,
    `${name}: element ${at} is ${values[at]}, expected ${stepped[at]}: ${used.share} of its allowance`,
  );
}

Deno.test("gpt2: formats and shards of one model compute the same, and a saved model loads bit for bit", async () => {
  using device = await openDevice();
  const { tokens } = await readExpected("gpt2-erf");
  using model = await loadModel(device, fixture("gpt2-erf"));
  const logits = await model.logits(tokens[0]);
  {
    using sharded = await loadModel(device, fixture("gpt2-erf-sharded"));
    assert.deepEqual(await sharded.logits(tokens[0]), logits);
    assert(
      [...(await sharded.parameters()).keys()].every((name) => name.startsWith("transformer.")),
    );
  }
  for (
    const [folder, bits] of [["gpt2-erf-f16", 11], [
      "gpt2-erf-bf16",
      8,
    ]] as const
  ) {
    using rounded = await loadModel(device, fixture(folder));
    // Weights differ by 2^-bits: a sanity bound, ten times what such a difference makes in a sum; exact values are compared on files.
    assertClose(await rounded.logits(tokens[0]), logits, {
      atol: 10 * 2 ** -bits * largest(logits),
      rtol: 0,
    }, folder);
  }
  await withFolder(async (parent) => {
    const folder = join(parent, "saved");
    await model.save(folder);
    const saved = await readSafetensors(join(folder, "model.safetensors"));
    const parameters = await model.parameters();
    assert.deepEqual([...saved.keys()].sort(), [...parameters.keys()].sort());
    for (const [name, tensor] of saved) {
      assert.deepEqual(toF32(tensor), parameters.get(name), name);
    }
    using again = await loadModel(device, folder);
    assert.deepEqual(await again.parameters(), parameters);
    assert.deepEqual(await again.logits(tokens[0]), logits);
  });
});

Deno.test("gpt2: a saved model keeps what its folder recommends for sampling", async () => {
  using device = await openDevice();
  using model = await loadModel(device, fixture("gpt2-tiny"));
  await withFolder(async (parent) => {
    const folder = join(parent, "saved");
    await model.save(folder);
    using before = await readFolder(fixture("gpt2-tiny"));
    using after = await readFolder(folder);
    assert.equal(before.generation?.temperature, 0.7);
    assert.deepEqual(after.generation, before.generation);
  });
});

Deno.test("gpt2: rows past the context and ids past the vocabulary are RangeErrors", async () => {
  using device = await openDevice();
  using model = await loadModel(device, fixture("gpt2-erf"));
  await assert.rejects(model.logits([Array.from({ length: 25 }, () => 0)]), {
    name: "RangeError",
    message: /25.*24/,
  });
  await assert.rejects(model.logits([[67]]), {
    name: "RangeError",
    message: /67/,
  });
  await assert.rejects(model.lossAndGradients([[0, 1]], [[1, 67]]), {
    name: "RangeError",
  });
  assert.equal((await model.logits([[66]])).length, 67);
});
