/** Which adapters ranks get on invented machines, and that a rank opens the one that was chosen and no other. */
import assert from "node:assert/strict";
import {
  type AdapterChoice,
  chooseAdapters,
  type FoundAdapter,
  leftOut,
  listAdapters,
  openAdapter,
  refuseSharedBoard,
} from "../../../kernels/gpu/adapters.ts";
import { UserError } from "../../../kernels/gpu/errors.ts";
import { alsoOnProcessor, found, inProcessor, leftBoard, onProcessor, rightBoard } from "./machines.ts";

const [left, right, integrated, cpu, otherCpu] = [leftBoard, rightBoard, inProcessor, onProcessor, alsoOnProcessor]
  .map((device) => found(device));

const refuses = (message: RegExp, exitCode = 2) => (error: unknown) =>
  error instanceof UserError && error.exitCode === exitCode && message.test(error.message);

function assertChosen(machine: readonly FoundAdapter[], wanted: string, ranks: number, ...expected: FoundAdapter[]) {
  assert.deepEqual(chooseAdapters(machine, wanted, ranks), expected);
}

Deno.test("by default every GPU gets a rank", () => {
  assertChosen([left, right], "", 0, left, right);
  assertChosen([left, integrated], "", 0, left, integrated);
});

Deno.test("a CPU driver is used only where there is nothing else, and only one", () => {
  assertChosen([left, cpu], "", 0, left);
  assertChosen([cpu, left], "", 0, left);
  assertChosen([cpu, otherCpu], "", 0, cpu);
  assertChosen([cpu, left], "all", 0, cpu, left);
});

Deno.test("ranks go round the adapters", () => {
  assertChosen([cpu], "", 3, cpu, cpu, cpu);
  assertChosen([left, right], "", 3, left, right, left);
  assertChosen([left, right], "", 1, left);
  assertChosen([left, right, cpu], "llvmpipe", 2, cpu, cpu);
});

Deno.test("adapters are named by index, by name or by part of it", () => {
  const machine = [left, right, integrated, cpu];
  assertChosen(machine, "1", 0, right);
  assertChosen(machine, " 3, 0 ", 0, cpu, left);
  assertChosen(machine, "geforce", 0, left, right);
  assertChosen(machine, "UHD,0", 0, integrated, left);
  assertChosen(machine, cpu.name, 0, cpu); // its name has a comma
  assertChosen(machine, "3090", 0, left, right); // no index
  assertChosen(machine, "0000:41:00.0", 0, right);
  assertChosen(machine, `${cpu.uuid},0`, 0, cpu, left);
});

Deno.test("what can't be chosen is refused, with what there is", () => {
  const machine = [left, right];
  const choose = (wanted: string, ranks = 0) => () => chooseAdapters(machine, wanted, ranks);
  assert.throws(choose("radeon"), refuses(/"radeon": there is 0 "NVIDIA GeForce RTX 3090" at 0000:01:00.0; 1 "/));
  assert.throws(choose("2"), refuses(/"2": there is 0/));
  assert.throws(choose("0,,1"), refuses(/"": there is 0/));
  assert.throws(choose("0,0"), refuses(/Name adapter 0 ".*" at \S+ once: --ranks N/));
  assert.throws(choose("geforce,1"), refuses(/Name adapter 1 ".*" at \S+ once/));
  assert.throws(choose("all", 1), refuses(/2 adapters with --ranks 1: raise --ranks to 2/));
});

Deno.test("a board that two drivers show gets one rank", () => {
  const again = { ...left, name: "NVIDIA GeForce RTX 3090 (NVK)", uuid: "bbbbbbbb-0000-0000-0000-000000000000" };
  assertChosen([left, again, right], "", 0, left, right);
  const [one, two] = [left, right].map((adapter) => ({ ...adapter, id: null }));
  assertChosen([one, two], "", 0, one, two);
});

Deno.test("a board that can't be opened is left out, or refused where it is named", () => {
  const hidden = found(rightBoard, "nothing shows it");
  assertChosen([left, hidden], "", 0, left);
  assertChosen([left, hidden], "all", 0, left);
  const line = `adapter 1 "NVIDIA GeForce RTX 3090" at 0000:41:00.0 isn't used: nothing shows it`;
  assert.deepEqual(leftOut([left, hidden, found(onProcessor, "nothing shows it")], ""), [line]);
  assert.deepEqual(leftOut([left, hidden], "all"), [line]);
  assert.deepEqual(leftOut([left, hidden], "0"), []); // asked for
  const named = () => chooseAdapters([left, hidden], "1", 0);
  assert.throws(() => chooseAdapters([hidden], "", 0), refuses(/nothing shows it$/, 3));
  assert.throws(named, refuses(/^Cannot use adapter 1 "NVIDIA GeForce RTX 3090" at 0000:41:00.0: nothing shows it$/));
});

Deno.test("every adapter of this machine can be listed and opened", async () => {
  const adapters = await listAdapters();
  assert.ok(adapters.length > 0);
  for (const adapter of adapters.filter(({ unreachable }) => unreachable === null)) {
    using device = await openAdapter(adapter);
    assert.equal(device.name, adapter.name);
    assert.equal(device.board, adapter.id);
  }
});

Deno.test("another adapter than the one chosen is refused", async () => {
  const [adapter] = await listAdapters();
  const other: AdapterChoice = { ...adapter, name: left.name, id: left.id };
  const shown = adapter.id === null ? /RTX 3090: WebGPU opened/ : /RTX 3090 \(0000:01:00.0\): the driver shows /;
  await assert.rejects(openAdapter(other), refuses(shown, 3));
  await assert.rejects(openAdapter({ ...other, id: null }), refuses(/WebGPU opened .* in its place/, 3));
});

Deno.test("opening leaves the environment as it was", async () => {
  const [adapter] = await listAdapters();
  Deno.env.set("DRI_PRIME", "before");
  const environment = { VK_LOADER_DEVICE_SELECT: "0x1:0x1", MESA_VK_DEVICE_SELECT: "10005:0" };
  using _ = await openAdapter({ ...adapter, environment });
  assert.equal(Deno.env.get("DRI_PRIME"), "before");
  assert.equal(Deno.env.get("VK_LOADER_DEVICE_SELECT"), undefined);
  Deno.env.delete("DRI_PRIME");
});

Deno.test("two ranks on one board are refused where different boards were chosen", () => {
  const rank = (choice: FoundAdapter, board: string | null) => ({ choice, board });
  assert.throws(
    () => refuseSharedBoard([rank(cpu, cpu.id), rank(left, left.id), rank(right, left.id)]),
    refuses(/ranks 1 and 2 on one board: both got 0000:01:00.0, wanted .*0000:01:00.0\) and .*0000:41:00.0\)/, 3),
  );
  refuseSharedBoard([rank(left, left.id), rank(right, right.id)]);
  refuseSharedBoard([rank(cpu, cpu.id), rank(cpu, cpu.id)]); // --ranks 2
  refuseSharedBoard([rank(left, null), rank(right, null)]); // nothing tells
});
