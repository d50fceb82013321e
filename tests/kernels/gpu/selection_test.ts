/** Ways to a certain board, on loaders and layers that obey, that err, or that aren't there. */
import assert from "node:assert/strict";
import {
  type Environment,
  environmentsFor,
  type Selection,
  selectionsOf,
  selectionVariables,
  shownFirst,
} from "../../../kernels/gpu/selection.ts";
import type { VulkanDevice } from "../../../kernels/gpu/vulkan.ts";
import { alsoOnProcessor, inProcessor, leftBoard, onProcessor, rightBoard } from "./machines.ts";

const tag = ({ pci }: VulkanDevice) => `pci-${pci?.replaceAll(/[:.]/g, "_")}`;
const ids = ({ vendorId, deviceId }: VulkanDevice) => `${vendorId.toString(16)}:${deviceId.toString(16)}`;

/** Mesa's device-select layer over a plain loader; `picks` is how it reads DRI_PRIME. */
function layered(machine: readonly VulkanDevice[], picks: (tag: string, named: string) => boolean) {
  return ({ environment, powerPreference }: Selection) => {
    const { DRI_PRIME, MESA_VK_DEVICE_SELECT, NODEVICE_SELECT } = environment;
    if (NODEVICE_SELECT !== undefined) return shownFirst(machine, powerPreference);
    return machine.find((device) => ids(device) === MESA_VK_DEVICE_SELECT) ??
      machine.findLast((device) => DRI_PRIME !== undefined && picks(tag(device), DRI_PRIME)) ?? machine[0];
  };
}

const obeys = (tag: string, named: string) => tag === named;
const errs = (tag: string, named: string) => tag !== named;

function assertLeadsTo(machine: readonly VulkanDevice[], taken: (selection: Selection) => VulkanDevice | undefined) {
  const selections = selectionsOf(machine, taken, true);
  assert.deepEqual(selections.map((selection) => selection && taken(selection)), machine);
}

Deno.test("boards that are alike are told apart by where they sit", () => {
  const machine = [leftBoard, rightBoard];
  assertLeadsTo(machine, layered(machine, obeys));
  assertLeadsTo(machine, layered(machine, errs));
  const [left] = selectionsOf(machine, layered(machine, obeys), true);
  assert.equal(left?.environment.DRI_PRIME, "pci-0000_01_00_0");
  assert.equal(left?.environment.MESA_VK_DEVICE_SELECT, undefined); // it would come before DRI_PRIME
});

Deno.test("a GPU, one within the processor and a CPU driver are all reached", () => {
  const machine = [leftBoard, inProcessor, onProcessor, alsoOnProcessor];
  assertLeadsTo(machine, layered(machine, obeys));
  assertLeadsTo(machine, layered(machine, errs));
});

Deno.test("without a layer that picks, only what WebGPU prefers by kind is reached", () => {
  const plain = (machine: readonly VulkanDevice[]) => ({ powerPreference }: Selection) =>
    shownFirst(machine, powerPreference);
  const reached = (machine: readonly VulkanDevice[]) =>
    selectionsOf(machine, plain(machine), true).map((selection) => selection?.powerPreference ?? null);
  assert.deepEqual(reached([leftBoard, rightBoard]), ["high-performance", null]);
  assert.deepEqual(reached([inProcessor, leftBoard]), ["low-power", "high-performance"]);
  assert.deepEqual(reached([leftBoard, onProcessor]), ["high-performance", null]);
});

Deno.test("a driver that isn't conformant is out of reach, and in nobody's way", () => {
  const hidden = { ...leftBoard, conformant: false };
  const machine = [hidden, onProcessor];
  const taken = ({ powerPreference }: Selection) => shownFirst(machine, powerPreference);
  assert.deepEqual(selectionsOf(machine, taken, true).map((selection) => selection !== null), [false, true]);
  assert.equal(shownFirst([hidden], "high-performance"), undefined);
});

Deno.test("where the environment can't be changed it is left alone", () => {
  const taken = ({ environment, powerPreference }: Selection) => {
    assert.deepEqual(environment, {});
    return shownFirst([inProcessor, leftBoard, rightBoard], powerPreference);
  };
  const selections = selectionsOf([inProcessor, leftBoard, rightBoard], taken, false);
  assert.deepEqual(selections.map((selection) => selection !== null), [true, true, false]);
  assert.deepEqual(selectionsOf([leftBoard], () => leftBoard, true), [
    { environment: {}, powerPreference: "high-performance" },
  ]);
});

Deno.test("a loader that doesn't show the same board each time leads nowhere", () => {
  assert.deepEqual(selectionsOf([leftBoard, rightBoard], () => undefined, true), [null, null]);
});

Deno.test("the loader isn't asked to sort boards that are alike: it shuffles them", () => {
  const asks = (environments: Environment[]) => environments.some((names) => "VK_LOADER_DEVICE_SELECT" in names);
  assert.ok(!asks(environmentsFor(leftBoard, [leftBoard, rightBoard])));
  assert.ok(asks(environmentsFor(leftBoard, [leftBoard, onProcessor])));
});

Deno.test("tasks that train or list adapters may set what picks one, and call the loader", async () => {
  const { tasks } = JSON.parse(await Deno.readTextFile(new URL("../../../deno.json", import.meta.url)));
  for (const name of ["train", "adapters"]) {
    const command: string = tasks[name].command;
    const allowed = command.match(/--allow-env=(\S+)/)?.[1].split(",") ?? [];
    assert.deepEqual(selectionVariables.filter((variable) => !allowed.includes(variable)), [], name);
    assert.match(command, /--allow-ffi /);
  }
});
