/** The adapters command on this machine, as its task runs it: with the permissions that deno.json gives. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import type { AdapterDescription } from "../../train/adapters.ts";
import { testWithBoards } from "../boards.ts";
import { testWithSwiftShader } from "../swiftshader.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const { tasks } = JSON.parse(Deno.readTextFileSync(`${ROOT}/deno.json`));
const [, ...TASK]: string[] = tasks.adapters.command.split(" ");

interface Options {
  readonly env?: Readonly<Record<string, string>>;
  /** Changes the permissions that the task gives. */
  readonly permit?: (permission: string) => string | undefined;
}

async function adapters(args: readonly string[], { env = {}, permit = (permission) => permission }: Options = {}) {
  const child = new Deno.Command(Deno.execPath(), {
    args: [...TASK.flatMap((word) => permit(word) ?? []), ...args],
    cwd: ROOT,
    env: { NO_COLOR: "1", ...env },
  });
  const { code, stdout, stderr } = await child.output();
  return { code, out: new TextDecoder().decode(stdout), error: new TextDecoder().decode(stderr) };
}

async function listed(args: readonly string[], options?: Options): Promise<AdapterDescription[]> {
  const { code, out, error } = await adapters([...args, "--json"], options);
  assert.equal(code, 0, error);
  return JSON.parse(out);
}

Deno.test("adapters lists what there is, for people and for programs", async () => {
  const { code, out, error } = await adapters([]);
  assert.equal(code, 0, error);
  assert.match(out, /^0: .+\n {3}type {8}.*(GPU|CPU driver)/);
  assert.match(out, /\nTraining would start (1 rank|\d+ ranks) on adapters? \d/);
  for (const { name, error, limits, features, subgroupSize } of await listed([])) {
    assert.ok(name !== "");
    assert.equal(error, null);
    assert.ok(limits!.maxBufferSize > 0 && Array.isArray(features) && subgroupSize! >= 0);
  }
});

Deno.test("ranks go where flags say", async () => {
  const [first] = await listed(["--adapters", "0", "--ranks", "3"]);
  assert.deepEqual(first.ranks, [0, 1, 2]);
  assert.match((await adapters(["--ranks", "2", "--adapters", "0"])).out, /^0: .* → ranks 0, 1\n/);
  const wrong = await adapters(["--adapters", "no such board"]);
  assert.equal(wrong.code, 2);
  assert.match(wrong.error, /^error: Cannot find adapter "no such board": there is 0 ".*\n$/);
});

Deno.test("without the right to call Vulkan, WebGPU's own view is listed", async () => {
  const [first] = await listed([], { permit: (word) => word === "--allow-ffi" ? undefined : word });
  assert.deepEqual(first.ranks, [0]);
  assert.deepEqual([first.uuid, first.pci, first.heaps, first.error], [null, null, [], null]);
  assert.ok(first.limits!.maxBufferSize > 0);
});

testWithSwiftShader("two drivers are listed and opened, each as itself", async (env) => {
  const found = await listed(["--adapters", "all"], { env });
  assert.equal(found.length, 2);
  assert.deepEqual(found.map(({ ranks }) => ranks), [[0], [1]]);
  const swiftShader = found.find(({ name }) => name.startsWith("SwiftShader"))!;
  const lavapipe = found.find(({ name }) => name.startsWith("llvmpipe"))!;
  assert.notEqual(swiftShader.subgroupSize, lavapipe.subgroupSize);
  assert.notDeepEqual(swiftShader.limits, lavapipe.limits);
  assert.deepEqual((await listed([], { env })).map(({ ranks }) => ranks), [[0], []]); // CPU drivers: one is enough
});

testWithSwiftShader("without the right to the environment only the first of two can be opened", async (env) => {
  const permit = (word: string) => word.startsWith("--allow-env") ? "--allow-env=WGPT_DEBUG" : word;
  const found = await listed([], { env, permit });
  assert.deepEqual(found.map(({ error }) => error === null), [true, false]);
  assert.match(found[1].error!, /needs --allow-env=DENO_WEBGPU_BACKEND,/);
  const { code, error } = await adapters(["--adapters", "1"], { env, permit });
  assert.equal(code, 2);
  assert.match(error, /^error: Cannot use adapter 1 ".*": picking an adapter needs --allow-env=.*\n$/);
});

testWithBoards(3, "boards of one model each get a rank of their own", async (env) => {
  const found = await listed([], { env });
  assert.deepEqual(found.map(({ name }) => name).toSorted(), ["board 1", "board 2", "board 3"]);
  assert.deepEqual(found.map(({ pci }) => pci).toSorted(), ["0000:01:00.0", "0000:02:00.0", "0000:03:00.0"]);
  assert.deepEqual(found.map(({ ranks }) => ranks), [[0], [1], [2]]);
  assert.deepEqual(found.map(({ type }) => type), ["discrete", "discrete", "discrete"]);
  assert.deepEqual(found.map(({ error }) => error), [null, null, null]);
});

testWithBoards(3, "a board that nothing leads to gets no rank", async (env) => {
  const found = await listed([], { env: { ...env, VK_LOADER_LAYERS_DISABLE: "*" } });
  const open = found.filter(({ error }) => error === null);
  assert.ok(open.length < 3);
  assert.deepEqual(open.flatMap(({ ranks }) => ranks), open.map((_, rank) => rank));
  for (const { ranks, error } of found.filter((adapter) => adapter.error !== null)) {
    assert.deepEqual(ranks, []);
    assert.match(error!, /^nothing makes WebGPU show it here: install mesa-vulkan-drivers/);
  }
});
