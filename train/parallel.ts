/**
 * Many ranks as one learner: rank 0 leads a run and tells the others, which follow with devices of their own, what to do.
 * All hold the same weights and add up their gradients. It knows no device, no data on disk and no transport.
 */
import { createHash } from "node:crypto";
import type { Recorded } from "../kernels/gpu/choices.ts";
import type { DenseBatch } from "../model/batch.ts";
import type { Gpt2Config } from "../model/gpt2_config.ts";
import type { NamedTensor } from "../model/model.ts";
import { broadcastJson, type Communicator, gatherJson } from "./communicator.ts";
import type { Config } from "./config.ts";
import type { Console } from "./console.ts";
import type { Learner, LearnerOptions, OpenLearner, UpdateWork } from "./learner.ts";
import type { LossScaling } from "./precision.ts";
import { shares } from "./shares.ts";
import type { Kind } from "./step.ts";

/** A learner whose `accumulate` takes its rank's share of an update and returns when gradients are summed over all ranks. */
export interface RankLearner extends Learner {
  /** Microbatches a second of this rank alone. */
  speed(): Promise<number>;
  /** Whether each rank keeps a part of the moments: all of them must then read the same one at once. */
  readonly sharded: boolean;
}

export type OpenRankLearner = (options: LearnerOptions) => Promise<RankLearner>;

/** What rank 0 tells the others, before bytes that belong to it. */
type Order =
  | {
    readonly do: "open";
    readonly config: Config;
    readonly model: Gpt2Config;
    readonly initialize: boolean;
    readonly kernels: Recorded;
    readonly kernelsOf: string;
    readonly measure: boolean;
  }
  | { readonly do: "accumulate"; readonly tokens: number; readonly valid: readonly number[] } & Updating
  | { readonly do: "update"; readonly learningRate: number; readonly update: number }
  | { readonly do: "load"; readonly kind: Kind; readonly name: string; readonly elements: number }
  | { readonly do: "loadLossScaling"; readonly scaling: LossScaling }
  | { readonly do: "read"; readonly kind: Kind; readonly name: string }
  | { readonly do: "agree" | "end" };

type Updating = Pick<UpdateWork, "scale" | "seed" | "update"> & { readonly speeds: readonly number[] };

/** What opens a learner that speaks for all ranks; only rank 0 calls it. */
export function leading(communicator: Communicator, open: OpenRankLearner): OpenLearner {
  return async (options) => {
    const own = await open(options);
    const { config, model, initialize } = options;
    const { kernels, device } = own;
    const known = config.balance && options.speeds?.length === communicator.size ? options.speeds : undefined;
    const measure = config.balance && known === undefined;
    const leader = new Leader(communicator, own);
    await leader.tell({ do: "open", config, model, initialize, kernels, kernelsOf: device, measure });
    const ranks = await meet(communicator, own, measure);
    return leader.learner(ranks.map(({ device }) => device), known ?? ranks.map(({ speed }) => speed));
  };
}

/** Device and speed of each rank; every rank calls it. All speeds are 1 where they aren't measured. */
async function meet(communicator: Communicator, { device, speed }: RankLearner, measure: boolean) {
  return await gatherJson(communicator, { device, speed: measure ? await speed() : 1 });
}

/** Rank 0's side. */
class Leader {
  /** An order that wasn't carried out to its end: the others then wait for something else than the next. */
  #broken = false;

  constructor(readonly communicator: Communicator, readonly own: RankLearner) {}

  /** Sends an order with its bytes, and does rank 0's part of it. */
  async tell(order: Order, bytes?: Uint8Array, part?: () => Promise<void>): Promise<void> {
    if (this.#broken) throw new Error(`Cannot tell ranks to ${order.do}: they lost an order before`);
    this.#broken = true;
    await broadcastJson(this.communicator, order);
    if (bytes !== undefined) await this.communicator.broadcast(bytes, 0);
    await part?.();
    this.#broken = false;
  }

  /** Tensors that are read with the help of all ranks. */
  #gathered(kind: Kind): NamedTensor[] {
    return this.own.tensors(kind).map(({ name, shape, read }) => ({
      name,
      shape,
      read: async () => {
        let values: Float32Array | undefined;
        await this.tell({ do: "read", kind, name }, undefined, async () => void (values = await read()));
        return values!;
      },
    }));
  }

  learner(devices: readonly string[], speeds: readonly number[]): Learner {
    const { own, communicator } = this;
    return {
      ...own,
      device: nameOf(devices),
      speeds,
      accumulate: ({ batches, scale, seed, update }) => {
        const valid = batches.map(({ validTargets }) => validTargets);
        const order = {
          do: "accumulate",
          tokens: batches[0].tokens.length,
          valid,
          scale,
          seed,
          update,
          speeds,
        } as const;
        return this.tell(order, packed(batches), () => own.accumulate(share(communicator.rank, batches, order)));
      },
      update: (options) => this.tell({ do: "update", ...options }, undefined, () => own.update(options)),
      tensors: (kind) => own.sharded && kind !== "parameter" ? this.#gathered(kind) : own.tensors(kind),
      load: (kind, name, data) => {
        const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
        const order = { do: "load", kind, name, elements: data.length } as const;
        return this.tell(order, bytes, () => own.load(kind, name, data));
      },
      loadLossScaling: (scaling) => {
        return this.tell({ do: "loadLossScaling", scaling }, undefined, () => own.loadLossScaling(scaling));
      },
      agree: () => this.tell({ do: "agree" }, undefined, () => agree(communicator, own)),
      describe: () => `${own.describe()}\n${describeRanks(devices, speeds)}`,
      [Symbol.asyncDispose]: async () => {
        if (!this.#broken) await this.tell({ do: "end" });
        await own[Symbol.asyncDispose]();
      },
    };
  }
}

/**
 * A rank's life but rank 0's: opens a learner when told to, and obeys until the end.
 *
 * @throws Abandoned where rank 0 ended without saying so.
 */
export async function follow(
  communicator: Communicator,
  open: OpenRankLearner,
  console: Pick<Console, "line" | "status">,
): Promise<void> {
  const opening = await broadcastJson<Order>(communicator, undefined);
  if (opening.do !== "open") throw new Error(`Cannot follow: told to ${opening.do} before open`);
  const { measure, ...options } = opening;
  await using learner = await open({ ...options, console });
  await meet(communicator, learner, measure);
  for (;;) {
    const order = await broadcastJson<Order>(communicator, undefined);
    if (order.do === "end") return;
    await obey(order, learner, communicator);
  }
}

async function obey(order: Order, learner: RankLearner, communicator: Communicator): Promise<void> {
  switch (order.do) {
    case "accumulate": {
      const bytes = new Uint8Array(order.valid.length * order.tokens * BYTES_PER_TOKEN);
      await communicator.broadcast(bytes, 0);
      return await learner.accumulate(share(communicator.rank, unpacked(bytes, order), order));
    }
    case "read":
      await learner.tensors(order.kind).find(({ name }) => name === order.name)!.read();
      return;
    case "load": {
      const data = new Float32Array(order.elements);
      await communicator.broadcast(new Uint8Array(data.buffer), 0);
      return await learner.load(order.kind, order.name, data);
    }
    case "update":
      return await learner.update(order);
    case "loadLossScaling":
      return await learner.loadLossScaling(order.scaling);
    case "agree":
      return await agree(communicator, learner);
    default:
      throw new Error(`Cannot obey ${order.do}`);
  }
}

/** Tokens, targets, positions and starts, four bytes each. */
const BYTES_PER_TOKEN = 16;

function packed(batches: readonly DenseBatch[]): Uint8Array {
  const bytes = new Uint8Array(batches.length * batches[0].tokens.length * BYTES_PER_TOKEN);
  let at = 0;
  for (const { tokens, targets, positions, starts } of batches) {
    for (const { buffer, byteOffset, byteLength } of [tokens, targets, positions, starts]) {
      bytes.set(new Uint8Array(buffer, byteOffset, byteLength), at);
      at += byteLength;
    }
  }
  return bytes;
}

function unpacked({ buffer }: Uint8Array<ArrayBuffer>, order: Extract<Order, { do: "accumulate" }>): DenseBatch[] {
  const { tokens: rows, valid } = order;
  return valid.map((validTargets, i) => {
    const at = (part: number) => (i * 4 + part) * rows * 4;
    return {
      tokens: new Uint32Array(buffer, at(0), rows),
      targets: new Int32Array(buffer, at(1), rows),
      positions: new Uint32Array(buffer, at(2), rows),
      starts: new Uint32Array(buffer, at(3), rows),
      validTargets,
    };
  });
}

/** A rank's part of an update. */
function share(rank: number, batches: readonly DenseBatch[], { scale, seed, update, speeds }: Updating): UpdateWork {
  const [from, to] = shares(batches.length, speeds)[rank];
  return { batches: batches.slice(from, to), firstRow: from * batches[0].tokens.length, scale, seed, update };
}

/** @throws Error on every rank where one holds other weights than rank 0. */
async function agree(communicator: Communicator, learner: Learner): Promise<void> {
  const hash = createHash("sha256");
  for (const { name, read } of learner.tensors("parameter")) hash.update(name).update(await read());
  const own = hash.digest();
  const leaders = Uint8Array.from(own);
  await communicator.broadcast(leaders, 0);
  const differing = new Float32Array(communicator.size);
  if (!own.equals(leaders)) differing[communicator.rank] = 1;
  await communicator.allReduce(differing);
  const ranks = [...differing.keys()].filter((rank) => differing[rank] !== 0);
  if (ranks.length > 0) {
    throw new Error(`Weights of rank ${ranks.join(", ")} aren't rank 0's: an adapter miscalculates`);
  }
}

/** `2 x llvmpipe`, `NVIDIA A, NVIDIA B` */
function nameOf(devices: readonly string[]): string {
  return [...new Set(devices)].map((name) => {
    const times = devices.filter((other) => other === name).length;
    return times === 1 ? name : `${times} x ${name}`;
  }).join(", ");
}

function describeRanks(devices: readonly string[], speeds: readonly number[]): string {
  const total = speeds.reduce((sum, speed) => sum + speed, 0);
  const equal = speeds.every((speed) => speed === speeds[0]);
  const parts = devices.map((device, rank) => {
    return `rank ${rank} ${device}${equal ? "" : ` takes ${(100 * speeds[rank] / total).toFixed(0)} %`}`;
  });
  return `${devices.length} ranks: ${parts.join(", ")}`;
}
