/**
 * Which kernel each call runs by: calls and candidates named so that a choice can be written down and found again, in
 * another process and for another program. It knows no op, no clock and no disk.
 */
import { createHash } from "node:crypto";
import { type Call, type Chooser, type Dispatch, formatType, isScratch, type Offer } from "./graph.ts";
import { variableOf } from "./plan.ts";

/** Fingerprints of chosen candidates by the calls' descriptions. */
export type Recorded = Readonly<Record<string, string>>;

/**
 * What decides how fast a call's candidates are: op, types, attributes, and which inputs are one tensor or lie in the store,
 * with their textures kept or not. Calls of one description share a choice.
 */
export function describeCall({ op, inputs, attrs }: Call, keep = false): string {
  const stored = keep ? " kept" : " stored";
  const operands = inputs.map((input, index) => {
    const first = inputs.findIndex((other) => other.base === input.base);
    const kind = first < index ? ` as input ${first}` : variableOf(input) === null ? "" : stored;
    return formatType(input) + kind;
  });
  const attributes = attrs === undefined ? "" : ` ${JSON.stringify(attrs)}`;
  return `${op.name} ${operands.join(", ")}${attributes}`;
}

/** Identity of a candidate: changes with any shader text, grid, binding or uniform of its dispatches. */
export function fingerprint(call: Call, dispatches: readonly Dispatch[]): string {
  const scratches: unknown[] = [];
  const place = (tensor: Dispatch["bindings"][number]["tensor"]): string => {
    if (!isScratch(tensor)) {
      const input = call.inputs.findIndex(({ base }) => base === tensor.base);
      return input >= 0 ? `input ${input}` : `output ${call.outputs.findIndex(({ base }) => base === tensor.base)}`;
    }
    if (!scratches.includes(tensor)) scratches.push(tensor);
    return `scratch ${scratches.indexOf(tensor)}`;
  };
  const described = dispatches.map(({ wgsl, workgroups, bindings, uniforms }) => [
    wgsl,
    workgroups,
    bindings.map(({ tensor, access, rows, as }) => [place(tensor), formatType(tensor), access, rows, as]),
    uniforms,
  ]);
  return digest(described);
}

/** Identity of all that is offered for a call: it changes where any candidate does. */
export function fingerprintOfAll({ call, candidates }: Offer): string {
  return digest(candidates.map((candidate) => fingerprint(call, candidate)));
}

/** 16 hexadecimal digits that change with the value's JSON. */
export function digest(value: unknown): string {
  return createHash("sha256").update(JSON.stringify(value)).digest("hex").slice(0, 16);
}

/** Takes the recorded kernels, elsewhere each op's own best guess, and records what it took. */
export class Choices implements Chooser {
  readonly #used = new Map<string, string>();
  readonly #missing = new Set<string>();

  constructor(readonly recorded: Recorded = {}) {}

  /** What programs compiled up to now run by. */
  get used(): Recorded {
    return Object.fromEntries(this.#used);
  }

  /** Calls whose recorded kernel isn't offered here: its source changed, or the adapter is another. */
  get missing(): readonly string[] {
    return [...this.#missing];
  }

  choose(offers: readonly Offer[]): Promise<readonly number[]> {
    const known = new Map<string, number>();
    return Promise.resolve(offers.map((offer) => {
      const description = describeCall(offer.call, offer.keep);
      if (!known.has(description)) known.set(description, this.#choose(description, offer));
      return known.get(description)!;
    }));
  }

  #choose(description: string, { call, candidates }: Offer): number {
    const wanted = this.recorded[description];
    const index = wanted === undefined
      ? 0
      : candidates.findIndex((candidate) => fingerprint(call, candidate) === wanted);
    if (index < 0) this.#missing.add(description);
    this.#used.set(description, fingerprint(call, candidates[Math.max(0, index)]));
    return Math.max(0, index);
  }
}
