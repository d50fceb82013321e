/** Writes a checkpoint to the folder named in its argument again and again until it is killed; checkpoint_test.ts runs it. */

import { writeFolder } from "../../model/checkpoint.ts";
import { gpt2Parameters, parseGpt2Config } from "../../model/gpt2_config.ts";

const config = parseGpt2Config(
  { model_type: "gpt2", n_layer: 1, n_head: 2, n_embd: 8, n_positions: 5, vocab_size: 11 },
  "config.json",
);

for (let offset = 0;; offset++) {
  const tensors = gpt2Parameters(config).map(({ name, shape }, i) => {
    const length = shape.reduce((a, b) => a * b);
    return { name, shape, read: () => Float32Array.from({ length }, (_, at) => i + offset + (at + 1) / (length + 1)) };
  });
  await writeFolder(Deno.args[0], { config, tensors });
  console.log("written", offset);
}
