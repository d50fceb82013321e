/**
 * Which adapters a machine has, which of them ranks get, and how a rank opens its own and no other. It knows nothing of
 * what a rank does with it.
 */
import { type Device, findAdapter, openDevice, prepareEnvironment } from "./device.ts";
import { UserError } from "./errors.ts";
import { apply, boardOf, mayUse, selectionsOf, selectionVariables, takenNow, usesVulkan } from "./selection.ts";
import { type DeviceType, enumerateVulkan, type MemoryHeap } from "./vulkan.ts";

export type { DeviceType, MemoryHeap } from "./vulkan.ts";

/** An adapter that a rank is to open. */
export interface AdapterChoice {
  readonly name: string;
  /** Identifies the board, where the driver tells: PCI address, else UUID. */
  readonly id: string | null;
  /** "other" also where nothing tells. */
  readonly type: DeviceType;
  /** Environment that makes WebGPU show this adapter first; set before the rank asks for one. */
  readonly environment: Readonly<Record<string, string>>;
  readonly powerPreference: GPUPowerPreference;
}

/** An adapter of this machine, as far as Vulkan or else WebGPU tells. */
export interface FoundAdapter extends AdapterChoice {
  readonly vendorId: number | null;
  readonly deviceId: number | null;
  /** Empty where nothing tells. */
  readonly driver: string;
  readonly uuid: string | null;
  readonly pci: string | null;
  /** Empty where nothing tells. */
  readonly heaps: readonly MemoryHeap[];
  /** Why no rank can open it, and what to do; null where one can. */
  readonly unreachable: string | null;
}

/**
 * All adapters: what Vulkan enumerates where FFI is permitted and there is a Vulkan loader, else what WebGPU shows for each
 * power preference. Nobody is asked for a permission.
 *
 * @throws UserError with exit code 3 where there is none.
 */
export async function listAdapters(): Promise<readonly FoundAdapter[]> {
  prepareEnvironment();
  const devices = usesVulkan() ? enumerateVulkan() ?? [] : [];
  if (devices.length === 0) return await shownByWebGpu();
  const selections = selectionsOf(devices);
  return devices.map(({ conformant, ...device }, i) => {
    const selection = selections[i] ?? { environment: {}, powerPreference: "high-performance" };
    const unreachable = selections[i] === null ? whyUnreachable(conformant) : null;
    return { ...device, ...selection, id: boardOf(device), unreachable };
  });
}

function whyUnreachable(conformant: boolean): string {
  if (!conformant) return "its driver isn't conformant to Vulkan, so WebGPU hides it: install another for it";
  if (!mayUse(selectionVariables)) return `picking an adapter needs --allow-env=${selectionVariables.join(",")}`;
  const remedy = Deno.build.os === "linux"
    ? "install mesa-vulkan-drivers 23.3 or later, whose layer picks boards by PCI address"
    : "install a Vulkan loader from 1.4.326 on, which tells models apart";
  return `nothing makes WebGPU show it here: ${remedy}, or let this process see no other board`;
}

/** WebGPU has no list: each preference shows the adapter it would take. Where they differ they are of those kinds. */
async function shownByWebGpu(): Promise<FoundAdapter[]> {
  const preferences = ["high-performance", "low-power"] as const;
  const shown = await Promise.all(preferences.map(async (powerPreference) => {
    const { adapter: { info } } = await findAdapter({ powerPreference });
    return { info, powerPreference, key: JSON.stringify([info.vendor, info.device, nameOf(info)]) };
  }));
  const distinct = shown.filter(({ key }, i) => shown.findIndex((other) => other.key === key) === i);
  return distinct.map(({ info, powerPreference }) => ({
    name: nameOf(info),
    id: null,
    type: info.isFallbackAdapter ? "cpu" : distinct.length === 1 ? "other" : TYPE_OF[powerPreference],
    environment: {},
    powerPreference,
    vendorId: Number(info.vendor) || null,
    deviceId: Number(info.device) || null,
    driver: info.architecture,
    uuid: null,
    pci: null,
    heaps: [],
    unreachable: null,
  }));
}

const TYPE_OF = { "high-performance": "discrete", "low-power": "integrated" } as const;

function nameOf(info: GPUAdapterInfo): string {
  return info.description || info.device || "unnamed adapter";
}

/**
 * The adapter of each rank. `wanted` is "all" that can be opened, or names, indices, PCI addresses or UUIDs with commas between; a name takes
 * every adapter that has it in its own. Empty takes every GPU that can be opened, or one CPU driver where there is no GPU. `ranks` go round the
 * adapters; 0 is one an adapter.
 *
 * @throws UserError with exit code 2 that names what there is, 3 where none can be opened.
 */
export function chooseAdapters(found: readonly FoundAdapter[], wanted: string, ranks: number): readonly FoundAdapter[] {
  const words = wanted.trim();
  const chosen = words === "" ? defaultOf(found) : words === "all" ? usable(found) : namedIn(found, words);
  for (const adapter of chosen) {
    if (adapter.unreachable !== null) {
      throw new UserError(
        `Cannot use adapter ${label(adapter, found)}: ${adapter.unreachable}`,
        ["", "all"].includes(words) ? 3 : 2,
      );
    }
  }
  if (words !== "" && ranks > 0 && ranks < chosen.length) {
    throw new UserError(
      `Cannot use ${chosen.length} adapters with --ranks ${ranks}: raise --ranks to ${chosen.length} or name fewer adapters`,
      2,
    );
  }
  return Array.from({ length: ranks || chosen.length }, (_, rank) => chosen[rank % chosen.length]);
}

/** Those that can be opened; where there is none, one that says why. */
function usable(found: readonly FoundAdapter[]): readonly FoundAdapter[] {
  const open = found.filter(({ unreachable }) => unreachable === null);
  return open.length === 0 ? found.slice(0, 1) : open;
}

/** A board that two drivers show is taken once: ranks that share a board share its speed. */
function defaultOf(found: readonly FoundAdapter[]): readonly FoundAdapter[] {
  const gpus = usable(found).filter(({ type }) => type !== "cpu");
  if (gpus.length === 0) return usable(found).slice(0, 1);
  return gpus.filter(({ id }, i) => id === null || gpus.findIndex((other) => other.id === id) === i);
}

/** A line for each GPU that a choice which isn't by name had to leave out. */
export function leftOut(found: readonly FoundAdapter[], wanted: string): readonly string[] {
  if (!["", "all"].includes(wanted.trim())) return [];
  return found.filter(({ unreachable, type }) => unreachable !== null && type !== "cpu")
    .map((adapter) => `adapter ${label(adapter, found)} isn't used: ${adapter.unreachable}`);
}

function namedIn(found: readonly FoundAdapter[], words: string): readonly FoundAdapter[] {
  const whole = found.filter(({ name }) => name === words); // names may hold commas
  if (whole.length > 0) return whole;
  const chosen = words.split(",").map((word) => word.trim()).flatMap((word) => {
    const index = /^\d+$/.test(word) ? found[Number(word)] : undefined;
    const matching = index === undefined ? withName(found, word) : [index];
    if (matching.length > 0) return matching;
    const known = found.map((adapter) => label(adapter, found)).join("; ");
    throw new UserError(`Cannot find adapter ${JSON.stringify(word)}: there is ${known}; or name all`, 2);
  });
  const twice = chosen.find((adapter, i) => chosen.indexOf(adapter) !== i);
  if (twice === undefined) return chosen;
  throw new UserError(`Name adapter ${label(twice, found)} once: --ranks N puts several ranks on one adapter`, 2);
}

function withName(found: readonly FoundAdapter[], word: string): readonly FoundAdapter[] {
  const part = word.toLowerCase();
  const named = ({ name, pci, uuid }: FoundAdapter) =>
    name.toLowerCase().includes(part) || pci === part || uuid === part;
  return part === "" ? [] : found.filter(named);
}

function label(adapter: FoundAdapter, found: readonly FoundAdapter[]): string {
  const place = adapter.pci === null ? "" : ` at ${adapter.pci}`;
  return `${found.indexOf(adapter)} ${JSON.stringify(adapter.name)}${place}`;
}

/**
 * Opens the adapter that was chosen, never another. It must be the first that its thread asks WebGPU for: the loader and its
 * layers read some of the environment once. The environment is the process's: of several Workers only one may open
 * at a time, and none may compute meanwhile, for drivers read the environment without a lock.
 *
 * @throws UserError with exit code 3 where WebGPU would give or gave another adapter, or none.
 */
export async function openAdapter(choice: AdapterChoice): Promise<Device> {
  prepareEnvironment();
  using _ = selected(choice);
  const board = checkBoard(choice);
  const device = await openDevice({ powerPreference: choice.powerPreference });
  device.board = board;
  if (device.name === choice.name) return device;
  device[Symbol.dispose]();
  throw new UserError(`Cannot open ${choice.name}: WebGPU opened ${device.name} in its place; ${SEE_ADAPTERS}`, 3);
}

const SEE_ADAPTERS = "`deno task adapters` lists what there is";

function selected({ name, environment }: AdapterChoice): Disposable {
  const variables = Object.keys(environment).length === 0 ? [] : selectionVariables;
  if (mayUse(variables)) return apply(environment);
  throw new UserError(`Cannot pick ${name}: that needs --allow-env=${variables.join(",")}`, 4);
}

/** The board that WebGPU takes in this environment; null where nothing tells. */
function checkBoard({ name, id, powerPreference }: AdapterChoice): string | null {
  if (id === null || enumerateVulkan() === null) return null;
  const taken = takenNow(powerPreference);
  if (taken !== undefined && boardOf(taken) === id) return id;
  const instead = taken === undefined ? "none for sure" : `${taken.name} (${boardOf(taken)})`;
  throw new UserError(`Cannot open ${name} (${id}): the driver shows ${instead} now; ${SEE_ADAPTERS}`, 3);
}

/** What a rank was to open, and the board it got. */
export interface OpenedAdapter {
  readonly choice: Pick<AdapterChoice, "name" | "id">;
  /** `board` of its device. */
  readonly board: string | null;
}

/**
 * Checks that ranks that were to open different boards did.
 *
 * @throws UserError with exit code 3 naming two that share one.
 */
export function refuseSharedBoard(ranks: readonly OpenedAdapter[]): void {
  ranks.forEach(({ choice, board }, rank) => {
    const other = ranks.findIndex((before) => before.board === board && before.choice.id !== choice.id);
    if (board === null || other < 0 || other > rank) return;
    throw new UserError(
      `Cannot train with ranks ${other} and ${rank} on one board: both got ${board}, wanted ` +
        `${ranks[other].choice.name} (${ranks[other].choice.id}) and ${choice.name} (${choice.id}); ${SEE_ADAPTERS}`,
      3,
    );
  });
}
