/* What runs measured, as columns to draw: rewound where a run goes back, smoothed, over updates, tokens or time. It draws nothing. */

const measures = ["loss", "gradNorm", "learningRate", "tokensPerSecond", "deviceMemory", "hostMemory"];

/** The first index whose step is at least this. */
function lowerBound(steps, step) {
  let [low, high] = [0, steps.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Cuts all columns of a table from a step on: a resumed run measures it again. */
function rewind(table, step) {
  if (table.step.length === 0 || table.step.at(-1) < step) return;
  const length = lowerBound(table.step, step);
  for (const column of Object.values(table)) column.length = length;
}

/** A number to draw: what isn't finite comes as null in JSON and leaves a gap. */
const drawable = (value) => (typeof value === "number" && Number.isFinite(value) ? value : null);

export class Curves {
  constructor() {
    this.reset();
  }

  reset() {
    this.updates = Object.fromEntries(["step", "tokens", "time", ...measures].map((name) => [name, []]));
    this.heldOut = { step: [], loss: [] };
  }

  push(record) {
    if (record.kind === "update") this.#pushUpdate(record);
    if (record.kind === "evaluation") {
      rewind(this.heldOut, record.step);
      this.heldOut.step.push(record.step);
      this.heldOut.loss.push(drawable(record.loss));
    }
  }

  #pushUpdate(record) {
    const { updates } = this;
    rewind(updates, record.step);
    rewind(this.heldOut, record.step);
    const tokens = Number(record.tokens) || 0;
    const took = (tokens - (updates.tokens.at(-1) ?? 0)) / record.tokensPerSecond;
    updates.time.push((updates.time.at(-1) ?? 0) + (took > 0 && Number.isFinite(took) ? took : 0));
    updates.step.push(record.step);
    updates.tokens.push(tokens);
    for (const name of measures) updates[name].push(drawable(record[name]));
  }

  /** Where along the axis each update is. */
  x(axis) {
    return this.updates[axis];
  }

  /** Where along the axis each measurement of the held-out loss is: at the update before it. */
  heldOutX(axis) {
    if (axis === "step") return this.heldOut.step;
    const { step, [axis]: column } = this.updates;
    return this.heldOut.step.map((at) => column[Math.max(0, lowerBound(step, at + 1) - 1)] ?? 0);
  }
}

/** A running mean that forgets by `weight` a value, faster among the first, where values still change much; gaps stay gaps. */
export function smoothed(values, weight) {
  let [mean, seen] = [0, 0];
  return values.map((value) => {
    if (value === null) return null;
    const kept = Math.min(weight, 1 - 1 / Math.max(1, seen++ / 10));
    return mean = kept * mean + (1 - kept) * value;
  });
}

/** At most `most` points, in each stretch the lowest and the highest, so that no peak is lost. */
export function thinned(x, y, most = 4000) {
  if (x.length <= most) return [x, y];
  const stretch = Math.ceil(x.length / (most / 2));
  const kept = [];
  for (let from = 0; from < x.length; from += stretch) {
    let [low, high] = [from, from];
    for (let i = from; i < Math.min(x.length, from + stretch); i++) {
      if (y[low] === null || (y[i] !== null && y[i] < y[low])) low = i;
      if (y[high] === null || (y[i] !== null && y[i] > y[high])) high = i;
    }
    kept.push(...(low === high ? [low] : [Math.min(low, high), Math.max(low, high)]));
  }
  if (kept.at(-1) !== x.length - 1) kept.push(x.length - 1);
  return [kept.map((i) => x[i]), kept.map((i) => y[i])];
}
