/** Weights are made and read in pieces: the bits are those of the whole. */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { normals } from "../../kernels/random.ts";
import { gpt2Defaults } from "../../model/gpt2_config.ts";
import { createModel } from "../../model/load.ts";
import { PIECE } from "../../model/model.ts";
import { testDevice } from "../harness.ts";

Deno.test("normals begun in the middle go on as the whole sequence does", () => {
  const whole = normals(7, 3, 101);
  assert.deepEqual(normals(7, 3, 61, 40), whole.slice(40));
  assert.throws(() => normals(7, 3, 4, 2), { name: "RangeError", message: /wanted a multiple of 4/ });
});

Deno.test("a table of more than one piece has the bits of the whole, made and read", async () => {
  const config = { ...gpt2Defaults, vocab_size: 70_001, n_positions: 8, n_embd: 64, n_head: 2, n_layer: 1 };
  using model = createModel(await testDevice(), config, { seed: 11 });
  const table = model.declared[0];
  const wanted = normals(11, 0, 70_001 * 64).map((value) => value * config.initializer_range);
  assert.ok(wanted.length > PIECE);
  const read: number[] = [];
  let at = 0;
  for await (const piece of model.pieces(table)) {
    assert.ok(Buffer.from(piece.buffer).equals(Buffer.from(wanted.slice(at, at += piece.length).buffer)));
    read.push(piece.length);
  }
  assert.deepEqual(read, [PIECE, wanted.length - PIECE]);
  const whole = await model.read(table);
  assert.ok(Buffer.from(whole.slice().buffer).equals(Buffer.from(wanted.buffer)));
});
