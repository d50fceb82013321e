/**
 * Planning: which calls run, in which order, and which memory each value gets. Pure: it knows calls and sizes, no GPU.
 *
 * Values whose lifetimes don't overlap share a slot, largest first into the smallest slot that is free ("greedy by size
 * for shared objects", Pisarchyk and Lee 2020). An output made in place takes its input's memory where nothing reads the
 * old value later, else the old value is copied first.
 */
import { byteLength, type Call, type Dispatch, isLeaf, isScratch, type Scratch, type Tensor } from "./graph.ts";

/** A call with the kernels chosen for it. */
export interface Step {
  readonly call: Call;
  readonly dispatches: readonly Dispatch[];
}

/** Memory of a value: a leaf's own, or a slot of the program. */
export type Place = { readonly leaf: Tensor } | { readonly slot: number };

export interface Plan {
  /** Bytes of each shared buffer. */
  readonly slots: readonly number[];
  /** Slots that at some time hold a value kept from the forward to the backward pass. */
  readonly carrying: ReadonlySet<number>;
  /** Values to copy before a call runs in place on them. */
  readonly copies: ReadonlyMap<Call, readonly { readonly from: Tensor; readonly to: Tensor }[]>;
  place(tensor: Tensor | Scratch): Place;
  /** Bytes all values would take apart from each other, and how many values there are. */
  readonly unshared: { readonly bytes: number; readonly values: number };
  toString(): string;
}

/** The variable a value lives in, through any chain of in-place writes; null for a value of the program's own. */
export function variableOf(tensor: Tensor): Tensor | null {
  const source = tensor.base.source;
  if (isLeaf(source)) return source.kind === "variable" ? tensor.base : null;
  const input = source.op.inPlace?.(source)[source.outputs.indexOf(tensor.base)];
  return input === undefined ? null : variableOf(source.inputs[input]);
}

/**
 * The calls that outputs and writes to variables need, in the order they were made; but an overwrite of a variable
 * comes after every other reader of its old value.
 *
 * @throws Error where readers and an overwrite need each other.
 */
export function schedule(calls: readonly Call[], outputs: readonly Tensor[]): Call[] {
  const live = liveCalls(calls, outputs);
  const after = new Map<Call, Set<Call>>(live.map((call) => [call, new Set()]));
  const readers = new Map<Tensor, Call[]>();
  for (const call of live) {
    for (const input of call.inputs) {
      if (!isLeaf(input.base.source)) after.get(call)!.add(input.base.source);
      readers.set(input.base, [...(readers.get(input.base) ?? []), call]);
    }
  }
  for (const call of live) {
    for (const old of overwritten(call)) {
      for (const reader of readers.get(old.base) ?? []) if (reader !== call) after.get(call)!.add(reader);
    }
  }
  return topological(live, after);
}

function liveCalls(calls: readonly Call[], outputs: readonly Tensor[]): Call[] {
  const needed = new Set<Call>();
  const visit = (call: Call) => {
    if (needed.has(call)) return;
    needed.add(call);
    for (const input of call.inputs) if (!isLeaf(input.base.source)) visit(input.base.source);
  };
  for (const output of outputs) if (!isLeaf(output.base.source)) visit(output.base.source);
  for (const call of calls) if (overwritten(call).length > 0) visit(call);
  return calls.filter((call) => needed.has(call));
}

/** Variables' values that a call overwrites. */
function overwritten(call: Call): Tensor[] {
  const inputs = Object.values(call.op.inPlace?.(call) ?? {}).map((index) => call.inputs[index]);
  return inputs.filter((input) => variableOf(input) !== null);
}

function topological(calls: readonly Call[], after: ReadonlyMap<Call, ReadonlySet<Call>>): Call[] {
  const order: Call[] = [];
  const state = new Map<Call, "open" | "done">();
  const visit = (call: Call) => {
    if (state.get(call) === "done") return;
    if (state.get(call) === "open") {
      throw new Error(`Cannot order ${call.op.name}: it overwrites a variable that a later value still reads`);
    }
    state.set(call, "open");
    for (const earlier of [...after.get(call)!].sort((a, b) => a.id - b.id)) visit(earlier);
    state.set(call, "done");
    order.push(call);
  };
  for (const call of calls) visit(call);
  return order;
}

/** Values that share memory because one was made in place of the other. */
interface Group {
  bytes: number;
  from: number;
  to: number;
  slot: number;
}

/** Memory for the values of scheduled calls with their kernels; outputs keep theirs to the end. */
export function plan(steps: readonly Step[], outputs: readonly Tensor[]): Plan {
  const { groups, copies } = groupValues(steps, outputs);
  const distinct = [...new Set(groups.values())];
  const slots = assignSlots(distinct);
  const bytes = distinct.reduce((sum, group) => sum + group.bytes, 0);
  return {
    slots,
    carrying: new Set(distinct.filter((group) => crosses(group, steps)).map(({ slot }) => slot)),
    copies,
    unshared: { bytes, values: distinct.length },
    place(tensor) {
      const group = groups.get(isScratch(tensor) ? tensor : tensor.base);
      if (group !== undefined) return { slot: group.slot };
      if (isScratch(tensor)) throw new Error("Cannot place a scratch tensor of another call");
      return { leaf: variableOf(tensor) ?? tensor.base };
    },
    toString() {
      const planned = slots.reduce((sum, size) => sum + size, 0);
      return `${megabytes(bytes)} → ${megabytes(planned)}, ${distinct.length} values → ${slots.length} buffers`;
    },
  };
}

/** Whether a value is made before its graph was differentiated, and read by a call made in differentiating. */
function crosses({ from, to }: Group, steps: readonly Step[]): boolean {
  if (to === Infinity) return false;
  const border = steps[from].call.outputs[0].graph.forwardCalls ?? Infinity;
  return steps[from].call.id < border && steps[to].call.id >= border;
}

/** The group of every value of the program's own, and the copies that in-place outputs need. */
function groupValues(
  steps: readonly Step[],
  outputs: readonly Tensor[],
): { groups: Map<Tensor | Scratch, Group>; copies: Map<Call, { from: Tensor; to: Tensor }[]> } {
  const lastUse = lastUses(steps, outputs);
  const groups = new Map<Tensor | Scratch, Group>();
  const copies = new Map<Call, { from: Tensor; to: Tensor }[]>();
  const open = (key: Tensor | Scratch, from: number, to: number) => {
    groups.set(key, { bytes: byteLength(key), from, to, slot: -1 });
  };
  steps.forEach(({ call, dispatches }, now) => {
    const inPlace = call.op.inPlace?.(call) ?? {};
    call.outputs.forEach((output, index) => {
      if (variableOf(output) !== null) return;
      const to = lastUse.get(output) ?? now;
      const input = inPlace[index] === undefined ? undefined : call.inputs[inPlace[index]].base;
      const alone = call.inputs.filter((other) => other.base === input).length === 1;
      const group = input && alone && lastUse.get(input) === now ? groups.get(input) : undefined;
      if (group !== undefined) {
        group.to = to;
        groups.set(output, group);
        return;
      }
      open(output, now, to);
      if (input !== undefined) copies.set(call, [...(copies.get(call) ?? []), { from: input, to: output }]);
    });
    for (const scratch of scratches(dispatches)) open(scratch, now, now);
  });
  return { groups, copies };
}

/** The index of the last step that reads each value; outputs live on. */
function lastUses(steps: readonly Step[], outputs: readonly Tensor[]): Map<Tensor, number> {
  const last = new Map<Tensor, number>();
  steps.forEach(({ call }, now) => call.inputs.forEach((input) => last.set(input.base, now)));
  for (const output of outputs) last.set(output.base, Infinity);
  return last;
}

function scratches(dispatches: readonly Dispatch[]): Set<Scratch> {
  return new Set(dispatches.flatMap(({ bindings }) => bindings.map((binding) => binding.tensor).filter(isScratch)));
}

function assignSlots(groups: readonly Group[]): number[] {
  const slots: { bytes: number; taken: Group[] }[] = [];
  for (const group of [...groups].sort((a, b) => b.bytes - a.bytes || a.from - b.from)) {
    const free = slots
      .map((slot, index) => ({ slot, index }))
      .filter(({ slot }) => slot.taken.every((other) => other.to < group.from || group.to < other.from))
      .sort((a, b) => a.slot.bytes - b.slot.bytes)[0];
    group.slot = free?.index ?? slots.push({ bytes: group.bytes, taken: [] }) - 1;
    slots[group.slot].taken.push(group);
  }
  return slots.map((slot) => slot.bytes);
}

/** `1.25 MB`, `154.4 MB`: millions of bytes. */
export function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(bytes < 1e7 ? 2 : 1)} MB`;
}
