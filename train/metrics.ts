/** metrics.jsonl written and read whole; what its lines say stands in model/run_metrics.ts. It knows no GPU and no plot. */
import { UserError } from "../model/errors.ts";
import { exists, explainIo, writeAll, writeAllSync, writeAtomically } from "../model/files.ts";
import { type MetricRecord, parseRecord } from "../model/run_metrics.ts";

/**
 * Reads all records. A torn last line, left by a run that was killed, is passed over.
 *
 * @throws UserError where there is no such file or a line before the last is no record.
 */
export async function readMetrics(path: string): Promise<MetricRecord[]> {
  return (await readLines(path)).map(({ record }) => record);
}

/** An open metrics file; records are on the disk's side when append returns. */
export interface Metrics extends Disposable {
  /** @throws UserError where the disk refuses. */
  append(record: MetricRecord): void;
}

/**
 * Opens a run's metrics and cuts what lies after update `step`: a resumed run writes it again. 0 starts anew.
 *
 * @throws UserError where the file can't be read or written.
 */
export async function openMetrics(path: string, step: number): Promise<Metrics> {
  const lines = step > 0 && await exists(path) ? await readLines(path) : [];
  const kept = lines.filter(({ record }) => record.step <= step).map(({ line }) => `${line}\n`).join("");
  await writeAtomically(path, (file) => writeAll(file, new TextEncoder().encode(kept)));
  const file = await Deno.open(path, { append: true }).catch((error) => {
    throw explainIo("write", path, error);
  });
  return {
    append(record) {
      try {
        writeAllSync(file, new TextEncoder().encode(`${JSON.stringify(record)}\n`));
      } catch (error) {
        throw explainIo("write", path, error);
      }
    },
    [Symbol.dispose]: () => file.close(),
  };
}

async function readLines(path: string): Promise<{ line: string; record: MetricRecord }[]> {
  const text = await Deno.readTextFile(path).catch((error) => {
    throw explainIo("read", path, error);
  });
  const lines = text.split("\n");
  return lines.flatMap((line, index) => {
    if (line === "") return [];
    const record = parseRecord(line);
    if (record !== undefined) return [{ line, record }];
    if (index === lines.length - 1) return [];
    throw new UserError(`Cannot read ${path}: line ${index + 1} is no record`);
  });
}
