/** Checkpoint folders: what others wrote is read, what doesn't fit is refused by name, what is written loads again. No GPU. */

import assert from "node:assert/strict";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { readFolder, writeFolder } from "../../model/checkpoint.ts";
import { UserError } from "../../model/errors.ts";
import { replaceFolder, standingFolder } from "../../model/files.ts";
import { attentionScale, gpt2Parameters } from "../../model/gpt2_config.ts";
import { fromF32, readSafetensors, type TensorSource, toF32, writeSafetensors } from "../../model/safetensors.ts";
import { withFolder } from "./folders.ts";
import { config, contentOf, numbered, small, values } from "./small_checkpoint.ts";
import { fixture } from "./torch_fixtures.ts";

/** A folder as `small` needs it, with `change` done to its tensors. */
async function writeSmall(folder: string, change: (tensors: Map<string, TensorSource>) => void): Promise<void> {
  const tensors = new Map<string, TensorSource>(
    gpt2Parameters(config).map(({ name, shape }, i) => [name, { dtype: "F32", shape, data: numbered({ shape }, i) }]),
  );
  change(tensors);
  await Deno.writeTextFile(join(folder, "config.json"), JSON.stringify(small));
  await writeSafetensors(join(folder, "model.safetensors"), tensors);
}

async function refused(action: Promise<unknown>, ...messages: RegExp[]): Promise<void> {
  await assert.rejects(action, (error: Error) => {
    assert(error instanceof UserError, error.stack);
    assert(!error.message.includes("\n"), error.message);
    for (const message of messages) assert.match(error.message, message);
    return true;
  });
}

Deno.test("checkpoint: transformers' names and config are read", async () => {
  using tiny = await readFolder(fixture("gpt2-tiny"));
  assert.equal(tiny.prefix, "transformer.");
  assert.equal(tiny.config.n_embd, 48);
  assert.equal(tiny.config.n_inner, null);
  assert.deepEqual(tiny.shape("transformer.h.1.mlp.c_fc.weight"), [48, 192]);
  assert.equal(tiny.dtype("transformer.ln_f.bias"), "F32");
  assert.deepEqual(tiny.generation, { bos_token_id: 192, eos_token_id: [192, 7], temperature: 0.7, top_k: 50 });
  const whole = await tiny.readF32("transformer.wte.weight");
  assert.deepEqual(await tiny.readF32("transformer.wte.weight", [3, 5]), whole.slice(3 * 48, 5 * 48));
  assert.equal(tiny.names().length, 2 + 12 * 2 + 2);
  assert.throws(() => tiny.shape("wte.weight"), RangeError);
});

Deno.test("checkpoint: bare names, masks among the weights, and PyTorch's F16, BF16 and shards of the same model", async () => {
  using bare = await readFolder(fixture("gpt2-erf"));
  assert.equal(bare.prefix, "");
  assert.equal(bare.config.activation_function, "gelu");
  assert.equal(attentionScale(bare.config), 1);
  const truth = await values(fixture("gpt2-erf"));
  assert.deepEqual(await values(fixture("gpt2-erf-sharded")), truth);
  for (const [folder, dtype] of [["gpt2-erf-f16", "F16"], ["gpt2-erf-bf16", "BF16"]] as const) {
    const rounded = new Map([...truth].map(([name, x]) => [name, toF32({ dtype, data: fromF32(x, dtype) })]));
    assert.deepEqual(await values(fixture(folder)), rounded, folder);
  }
});

Deno.test("checkpoint: the head's copy is passed over, or stands in for a token table left out", async () => {
  const table = "transformer.wte.weight";
  await withFolder(async (folder) => {
    await writeSmall(folder, (tensors) => tensors.set("lm_head.weight", tensors.get(table)!));
    assert.equal((await values(folder)).size, gpt2Parameters(config).length);
    await writeSmall(folder, (tensors) => {
      tensors.set("lm_head.weight", tensors.get(table)!);
      tensors.delete(table);
    });
    assert.deepEqual((await values(folder)).get(table), numbered({ shape: [11, 8] }, 0));
    await writeSmall(folder, (tensors) => tensors.set("lm_head.weight", { ...tensors.get(table)!, shape: [8, 11] }));
    await refused(readFolder(folder), /wrong: lm_head\.weight is \(8, 11\), wanted \(11, 8\)$/);
  });
});

Deno.test("checkpoint: tensors that are missing, unexpected or wrong are all named", async () => {
  await withFolder(async (folder) => {
    await writeSmall(folder, (tensors) => {
      for (const name of ["ln_f.bias", "h.0.ln_1.weight"]) tensors.delete(`transformer.${name}`);
      tensors.set("transformer.h.1.ln_1.weight", { dtype: "F32", shape: [8], data: new Float32Array(8) });
      tensors.set("wpe\n", { dtype: "F32", shape: [8], data: new Float32Array(8) });
      tensors.set("transformer.h.0.attn.c_proj.weight", { dtype: "F32", shape: [64], data: new Float32Array(64) });
      tensors.set("transformer.wpe.weight", { dtype: "I32", shape: [5, 8], data: new Int32Array(40) });
    });
    await refused(
      readFolder(folder),
      /^Cannot use .*model\.safetensors with its config\.json: missing: /,
      /missing: transformer\.h\.0\.ln_1\.weight, transformer\.ln_f\.bias; /,
      /unexpected: .*transformer\.h\.1\.ln_1\.weight/,
      /unexpected: .*"wpe\\n"/,
      /wrong: .*transformer\.h\.0\.attn\.c_proj\.weight is \(64\), wanted \(8, 8\)/,
      /wrong: .*transformer\.wpe\.weight is I32, wanted F32, F16, BF16, F64/,
    );
  });
});

Deno.test("checkpoint: folders without their files, and broken ones, are refused by name", async () => {
  await withFolder(async (folder) => {
    await refused(readFolder(join(folder, "none")), /^Cannot read .*none\/config\.json: No such file/);
    await refused(readFolder(folder), /config\.json: No such file/);
    await Deno.writeTextFile(join(folder, "config.json"), '{\n"a":\n}');
    await refused(readFolder(folder), /^Cannot read .*config\.json: no valid JSON/);
    await Deno.writeTextFile(join(folder, "config.json"), JSON.stringify(small));
    await refused(readFolder(folder), /^Cannot read .*model\.safetensors: No such file/);
    await Deno.writeFile(join(folder, "model.safetensors"), new Uint8Array(4));
    await refused(readFolder(folder), /model\.safetensors: it holds 4 bytes/);
    await writeSmall(folder, () => {});
    await Deno.writeTextFile(join(folder, "generation_config.json"), '{"temperature": "hot"}');
    await refused(readFolder(folder), /generation_config\.json: temperature: found "hot", wanted a number from 0$/);
  });
});

Deno.test("checkpoint: an index that names what isn't there, or files elsewhere, is refused", async () => {
  await withFolder(async (folder) => {
    for await (const { name } of Deno.readDir(fixture("gpt2-erf-sharded"))) {
      await Deno.copyFile(join(fixture("gpt2-erf-sharded"), name), join(folder, name));
    }
    const index = join(folder, "model.safetensors.index.json");
    const good = JSON.parse(await Deno.readTextFile(index));
    const name = "transformer.ln_f.bias";
    const place = async (shard: unknown) => {
      const weight_map = { ...good.weight_map, [name]: shard };
      await Deno.writeTextFile(index, JSON.stringify({ ...good, weight_map }));
      return readFolder(folder);
    };
    for (const shard of ["../model.safetensors", "/etc/model.safetensors", "config.json", 7]) {
      await refused(place(shard), /index\.json: weight_map: "transformer\.ln_f\.bias": wanted the name of a shard/);
    }
    await refused(place("model-00009-of-00003.safetensors"), /model-00009-of-00003\.safetensors: No such file/);
    const other = good.weight_map[name] === "model-00001-of-00003.safetensors" ? 2 : 1;
    await refused(place(`model-0000${other}-of-00003.safetensors`), /it lacks tensor "transformer\.ln_f\.bias", which/);
    await Deno.writeTextFile(index, '{"weight_map": []}');
    await refused(readFolder(folder), /weight_map: wanted an object/);
  });
});

Deno.test("checkpoint: a written folder loads again, bit for bit, and holds what transformers wants", async () => {
  await withFolder(async (parent) => {
    const folder = join(parent, "a", "model/");
    const end = { ...config, eos_token_id: 10, bos_token_id: 9, attn_pdrop: 0.25, n_inner: 24 };
    let asked = 0;
    const content = contentOf(end);
    const tensors = [...content.tensors].map((tensor) => ({ ...tensor, read: () => (asked++, tensor.read()) }));
    const tokenizer = {
      endOfText: 7,
      save: (place: string) => Deno.writeTextFile(join(place, "tokenizer.json"), "{}"),
    };
    await writeFolder(folder, {
      config: end,
      tensors,
      tokenizer,
      extra: (place) => writeSafetensors(join(place, "optimizer.safetensors"), {}),
    });
    assert.equal(asked, tensors.length);
    using checkpoint = await readFolder(folder);
    assert.deepEqual(checkpoint.config, end);
    assert.deepEqual(checkpoint.generation, { bos_token_id: 9, eos_token_id: [10] });
    for (const { name, read } of content.tensors) assert.deepEqual(await checkpoint.readF32(name), read());
    assert.deepEqual([...Deno.readDirSync(folder)].map(({ name }) => name).sort(), [
      "config.json",
      "generation_config.json",
      "model.safetensors",
      "optimizer.safetensors",
      "tokenizer.json",
    ]);
    const written = JSON.parse(await Deno.readTextFile(join(folder, "config.json")));
    const wanted = { model_type: "gpt2", architectures: ["GPT2LMHeadModel"], n_positions: 5, torch_dtype: "float32" };
    assert.deepEqual({ ...written, ...wanted }, written);
    assert.deepEqual([...Deno.readDirSync(dirname(join(parent, "a", "model")))].length, 1);
  });
});

Deno.test("checkpoint: PyTorch's files come back with the same bytes; bare names stay bare", async () => {
  await withFolder(async (parent) => {
    for (const [name, dtype] of [["gpt2-tiny", "F32"], ["gpt2-erf-bf16", "BF16"], ["gpt2-erf-f16", "F16"]] as const) {
      using checkpoint = await readFolder(fixture(name));
      const { config, prefix } = checkpoint;
      const tensors = checkpoint.names().map((name) => ({
        name: prefix + name.slice("transformer.".length),
        shape: checkpoint.shape(name),
        read: () => checkpoint.readF32(name),
      }));
      await writeFolder(join(parent, name), { config, tensors, dtype });
      const [written, original] = [join(parent, name), fixture(name)].map((folder) =>
        join(folder, "model.safetensors")
      );
      assert.deepEqual(await readSafetensors(written), await readSafetensors(original), name);
    }
    const bare = contentOf(config);
    const tensors = [...bare.tensors].map((tensor) => ({ ...tensor, name: tensor.name.slice("transformer.".length) }));
    await writeFolder(join(parent, "bare"), { config, tensors });
    using checkpoint = await readFolder(join(parent, "bare"));
    assert.equal(checkpoint.prefix, "");
  });
});

Deno.test("checkpoint: a failed write leaves the old folder as it was and nothing beside it", async () => {
  await withFolder(async (parent) => {
    const folder = join(parent, "model");
    await writeFolder(folder, contentOf(config));
    const before = await values(folder);
    const fail = () => Promise.reject(new Error("stop"));
    await assert.rejects(writeFolder(folder, { ...contentOf(config, 50), extra: fail }), /^Error: stop$/);
    const short = { name: "a", shape: [2], read: () => new Float32Array(1) };
    await assert.rejects(writeFolder(folder, { config, tensors: [short] }), /its data take 4 bytes, wanted 8/);
    assert.deepEqual(await values(folder), before);
    assert.deepEqual([...Deno.readDirSync(parent)].map(({ name }) => name), ["model"]);
    await Deno.writeTextFile(join(parent, "file"), "");
    await refused(writeFolder(join(parent, "file"), contentOf(config)), /Cannot replace .*file: Not a directory/);
    await refused(writeFolder(join(parent, "file", "x"), contentOf(config)), /Cannot replace .*x: Not a directory/);
  });
});

Deno.test("checkpoint: a folder with anything else in it is not replaced", async () => {
  await withFolder(async (parent) => {
    await Deno.writeTextFile(join(parent, "thesis.md"), "years of work");
    await refused(writeFolder(parent, contentOf(config)), /holds "thesis\.md".*choose another folder/);
    await Deno.remove(join(parent, "thesis.md"));
    await Deno.mkdir(join(parent, "photos.json"));
    await refused(writeFolder(parent, contentOf(config)), /holds "photos\.json"/);
    assert.deepEqual([...Deno.readDirSync(parent)].length, 1);
  });
});

Deno.test("checkpoint: what a writer that died left is read where it stands, then cleaned", async () => {
  await withFolder(async (parent) => {
    const folder = join(parent, "model");
    await writeFolder(folder, contentOf(config));
    const before = await values(folder);
    await Deno.mkdir(`${folder}.tmp-1`);
    await Deno.rename(folder, `${folder}.old-1`); // it died between its two renames
    assert.equal(basename(await standingFolder(folder)), "model.old-1");
    assert.deepEqual(await values(folder), before);
    await assert.rejects(replaceFolder(folder, () => Promise.reject(new Error("stop"))), /stop/);
    assert.deepEqual([...Deno.readDirSync(parent)].map(({ name }) => name), ["model"]);
    assert.deepEqual(await values(folder), before);
    await Deno.mkdir(`${folder}.old-2`); // it died before it removed the old folder
    await Deno.mkdir(join(parent, "model2.tmp-1"));
    await writeFolder(folder, contentOf(config, 50));
    assert.deepEqual([...Deno.readDirSync(parent)].map(({ name }) => name).sort(), ["model", "model2.tmp-1"]);
    assert.notDeepEqual(await values(folder), before);
  });
});

Deno.test("checkpoint: a writer killed at any moment leaves one whole checkpoint", async () => {
  await withFolder(async (parent) => {
    const folder = join(parent, "model");
    const script = fileURLToPath(new URL("./checkpoint_writer.ts", import.meta.url));
    for (let round = 0; round < 3; round++) {
      const args = ["run", "--no-check", "--allow-read", "--allow-write", script, folder];
      const child = new Deno.Command(Deno.execPath(), { args, stdout: "piped", stderr: "inherit" }).spawn();
      const reader = child.stdout.getReader();
      await reader.read(); // the first folder stands
      await new Promise((done) => setTimeout(done, 20 + 37 * round));
      child.kill("SIGKILL");
      await child.status;
      await reader.cancel();
      const read = await values(folder);
      const offset = Math.floor(read.get("transformer.wte.weight")![0]);
      gpt2Parameters(config).forEach((parameter, i) => {
        assert.deepEqual(
          read.get(parameter.name),
          numbered(parameter, i + offset),
          `${parameter.name}, round ${round}`,
        );
      });
    }
    await writeFolder(folder, contentOf(config));
    assert.deepEqual([...Deno.readDirSync(parent)].map(({ name }) => name), ["model"]);
  });
});

Deno.test("checkpoint: a folder reached by a link is replaced where it stands", async () => {
  await withFolder(async (parent) => {
    await writeFolder(join(parent, "step-2"), contentOf(config));
    await Deno.symlink("step-2", join(parent, "latest"));
    await writeFolder(join(parent, "latest"), contentOf(config, 50));
    assert.deepEqual([...Deno.readDirSync(parent)].map(({ name }) => name).sort(), ["latest", "step-2"]);
    assert.equal(await Deno.readLink(join(parent, "latest")), "step-2");
    assert.equal(Math.floor((await values(join(parent, "step-2"))).get("transformer.wte.weight")![0]), 50);
  });
});
