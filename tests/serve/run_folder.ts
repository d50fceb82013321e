/** What tests of the dashboard share: runs' folders in the form that training leaves them, without training. */
import { join } from "node:path";
import type { MetricRecord, UpdateRecord } from "../../model/run_metrics.ts";

export const STEPS = 40;

export function update(step: number, changes: Partial<UpdateRecord> = {}): UpdateRecord {
  return {
    kind: "update",
    step,
    learningRate: 0.004 * (1 - step / 50),
    tokens: 1024 * step,
    loss: 4 + 4 / step,
    gradNorm: 1 + 1 / step,
    tokensPerSecond: 1024,
    steps: STEPS,
    deviceMemory: 50e6,
    hostMemory: 200e6 + step,
    ...changes,
  };
}

/** The records of a run's first updates, with its held-out loss every tenth. */
export function records(updates: number, lift = 0): MetricRecord[] {
  const first = { kind: "run", step: 0, unigramEntropy: 6.5, parameters: 1234, device: "a device" } as const;
  const rest = Array.from({ length: updates }, (_, i) => update(i + 1, { loss: 4 + lift + 4 / (i + 1) }));
  return [
    first,
    ...rest.flatMap((record): MetricRecord[] => {
      const { step, loss } = record;
      return step % 10 === 0 ? [record, { kind: "evaluation", step, loss: loss + 0.1 }] : [record];
    }),
  ];
}

export const lines = (all: readonly unknown[]) => all.map((record) => `${JSON.stringify(record)}\n`).join("");

/** Writes a run's folder. */
export async function makeRun(
  folder: string,
  { updates = STEPS, lift = 0, sample = "The people of the land", config = {} } = {},
): Promise<void> {
  await Deno.mkdir(folder, { recursive: true });
  await Deno.writeTextFile(join(folder, "config.json"), JSON.stringify({ preset: "tiny", steps: STEPS, ...config }));
  await Deno.writeTextFile(join(folder, "metrics.jsonl"), lines(records(updates, lift)));
  await Deno.writeTextFile(
    join(folder, "samples.txt"),
    `=== step 10 ===\nEarly words\n\n=== step 20 ===\n${sample}\n\n`,
  );
}

export async function append(folder: string, ...more: readonly unknown[]): Promise<void> {
  await Deno.writeTextFile(join(folder, "metrics.jsonl"), lines(more), { append: true });
}

/** Puts another file in the place of the metrics, as a resumed run does. */
export async function replaceMetrics(folder: string, all: readonly unknown[]): Promise<void> {
  const beside = join(folder, "metrics.jsonl.tmp-1");
  await Deno.writeTextFile(beside, lines(all));
  await Deno.rename(beside, join(folder, "metrics.jsonl"));
}
