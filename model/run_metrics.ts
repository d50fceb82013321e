/** What a run measures, a record a line of its metrics.jsonl: shared by who writes, draws and follows it. It reads no file. */

/** What a run starts from; the first record, once. */
export interface RunRecord {
  readonly kind: "run";
  readonly step: number;
  /** Nats a token of the held-out text under the training text's token counts. */
  readonly unigramEntropy: number;
  readonly parameters: number;
  readonly device: string;
}

/** One update. */
export interface UpdateRecord {
  readonly kind: "update";
  /** Counted from 1. */
  readonly step: number;
  /** Mean over the update's targets, in nats. */
  readonly loss: number;
  /** Before clipping. */
  readonly gradNorm: number;
  readonly learningRate: number;
  readonly tokensPerSecond: number;
  /** Targets learned from since the first update. */
  readonly tokens: number;
  /** In f16: what the next update's loss is multiplied by. */
  readonly lossScale?: number;
  /** In f16: updates left out up to now, as a gradient passed the format's range. */
  readonly skipped?: number;
  /** Updates of the whole run, as far as it was to go then. Runs of older versions don't say so. */
  readonly steps?: number;
  /** Bytes held on the device of rank 0, and in the memory of its process. */
  readonly deviceMemory?: number;
  readonly hostMemory?: number;
}

/** Held-out loss after so many updates. */
export interface EvaluationRecord {
  readonly kind: "evaluation";
  readonly step: number;
  /** Mean over targets, in nats. */
  readonly loss: number;
}

export type MetricRecord = RunRecord | UpdateRecord | EvaluationRecord;

/** A line as a record; undefined where it is none, as one that is half written. */
export function parseRecord(line: string): MetricRecord | undefined {
  try {
    const record = JSON.parse(line);
    const known = ["run", "update", "evaluation"].includes(record?.kind) && Number.isSafeInteger(record.step);
    return known ? record : undefined;
  } catch {
    return undefined;
  }
}
