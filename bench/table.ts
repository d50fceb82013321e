/** A bench's results as a table of 120 columns at most. It measures nothing. */
import { wrap } from "../model/arguments.ts";
import type { Bench, Result } from "./harness.ts";

const WIDTH = 120;

interface Column {
  readonly title: string;
  /** The cell of a row; empty where it has none. */
  cell(result: Result): string;
}

/** Title, rows, and below them what could not be measured. */
export function formatBench(bench: Bench): string {
  const { name, adapter, results, failed = [], notes = [], config } = bench;
  const title = `${name}${adapter ? ` on ${adapter}` : ""}, Deno ${Deno.version.deno}; ${formatConfig(config)}`;
  const misses = failed.map(({ case: label, reason }) => `not measured: ${label}: ${reason}`);
  return [
    ...wrap(title, WIDTH),
    "",
    ...formatRows(columnsOf(results), results),
    ...misses.flatMap((line) => wrap(line, WIDTH)),
    ...notes,
  ].join("\n");
}

function formatConfig(config: Bench["config"]): string {
  const part = ([name, value]: [string, unknown]): string =>
    typeof value === "object" && value !== null
      ? Object.entries(value).map(([key, inner]) => `${key} ${inner}`).join("; ")
      : `${name} ${value}`;
  return Object.entries(config).map(part).filter((text) => text !== "").join("; ");
}

function columnsOf(results: readonly Result[]): Column[] {
  const best = Math.max(...results.map(({ gflops = 0 }) => gflops));
  const ratios = ratiosByRow(results);
  const number = (title: string, value: (result: Result) => number | undefined, digits: number): Column => ({
    title,
    cell: (result) => value(result)?.toFixed(digits) ?? "",
  });
  const columns: Column[] = [
    { title: "case", cell: (result) => result.case },
    { title: "median ms", cell: ({ median_ms }) => milliseconds(median_ms) },
    {
      title: "least to most",
      cell: ({ repeats_ms }) => `${milliseconds(Math.min(...repeats_ms))} to ${milliseconds(Math.max(...repeats_ms))}`,
    },
    number("MB/s", (result) => result.mb_per_second, 1),
    number("tokens/s", (result) => result.tokens_per_second, 0),
    number("GFLOP/s", (result) => result.gflops, 1),
    { title: "of best", cell: ({ gflops }) => gflops === undefined ? "" : `${(gflops / best * 100).toFixed(0)} %` },
    number("device MB", ({ peak_device_bytes: bytes }) => bytes === undefined ? undefined : bytes / 1e6, 0),
    { title: "its time / ours", cell: (result) => ratios.get(result.case) ?? "" },
  ];
  return columns.filter(({ cell }) => results.some((result) => cell(result) !== ""));
}

/** A ratio stands in the row of the peer it compares with, else in the row that has it. */
function ratiosByRow(results: readonly Result[]): Map<string, string> {
  const cells = new Map<string, string>();
  for (const { case: name, ratio = {} } of results) {
    for (const [peer, value] of Object.entries(ratio)) {
      const row = results.find((other) => other.case === `${name}, ${peer}`);
      const text = row === undefined ? `${peer} ${value.toFixed(2)}` : value.toFixed(2);
      const key = row?.case ?? name;
      cells.set(key, cells.has(key) ? `${cells.get(key)}, ${text}` : text);
    }
  }
  return cells;
}

function formatRows(columns: readonly Column[], results: readonly Result[]): string[] {
  const table = [
    columns.map(({ title }) => title),
    ...results.map((result) => columns.map(({ cell }) => cell(result))),
  ];
  const widths = columns.map((_, i) => Math.max(...table.map((row) => row[i].length)));
  const rest = widths.slice(1).reduce((sum, width) => sum + width + 2, 0);
  const first = Math.min(widths[0], WIDTH - rest);
  const lines = table.flatMap(([name, ...cells]) => {
    const parts = name.match(new RegExp(`.{1,${first}}`, "g")) ?? [""];
    const head = parts[0].padEnd(first) + cells.map((cell, i) => "  " + cell.padStart(widths[i + 1])).join("");
    return [head.trimEnd(), ...parts.slice(1)];
  });
  return [lines[0], "-".repeat(first + rest), ...lines.slice(1)];
}

/** Three digits that count. */
function milliseconds(ms: number): string {
  return ms.toFixed(ms < 10 ? 2 : ms < 100 ? 1 : 0);
}
