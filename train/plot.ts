/** A run's metrics as SVG pictures to look at. It reads metrics.jsonl and knows nothing of how it came about. */
import { join } from "node:path";
import * as Plot from "@observablehq/plot";
import { parseHTML } from "linkedom";
import { UserError } from "../model/errors.ts";
import { explainIo, writeAll, writeAtomically } from "../model/files.ts";
import type { EvaluationRecord, MetricRecord, RunRecord, UpdateRecord } from "../model/run_metrics.ts";
import { readMetrics } from "./metrics.ts";

const BLUE = "#3b6fb6";
const ORANGE = "#e07b28";
const GRAY = "#6b7280";
const FAINT = 0.28;

/** Points drawn of one curve at most; more can't be told apart. */
const MOST_POINTS = 2000;

/**
 * Draws what a run has measured so far into its `plots` folder.
 *
 * @returns the files written; none before the first update.
 * @throws UserError where the metrics can't be read or the pictures not written.
 */
export async function writePlots(run: string): Promise<string[]> {
  const drawn = plots(await readMetrics(join(run, "metrics.jsonl")));
  const folder = join(run, "plots");
  if (Object.keys(drawn).length > 0) {
    await Deno.mkdir(folder, { recursive: true }).catch((error) => {
      throw explainIo("write", folder, error);
    });
  }
  const files = Object.entries(drawn).map(([name, svg]) => ({ path: join(folder, `${name}.svg`), svg }));
  for (const { path, svg } of files) {
    await writeAtomically(path, (file) => writeAll(file, new TextEncoder().encode(svg)));
  }
  return files.map(({ path }) => path);
}

/** Pictures by name, as standalone SVG texts. */
export function plots(records: readonly MetricRecord[]): Record<string, string> {
  const updates = records.filter((record): record is UpdateRecord => record.kind === "update");
  const evaluations = records.filter((record): record is EvaluationRecord => record.kind === "evaluation");
  const run = records.find((record): record is RunRecord => record.kind === "run");
  if (updates.length === 0) return {};
  return {
    loss: lossPlot(updates, evaluations, run),
    gradient_norm: curve(updates, "gradNorm", { title: "Gradient norm", label: "before clipping", log: true }),
    learning_rate: curve(updates, "learningRate", { title: "Learning rate", label: "of each update" }),
    throughput: curve(updates, "tokensPerSecond", { title: "Throughput", label: "tokens a second", fromZero: true }),
  };
}

/** Losses on log axes, where a power law is a straight line. */
function lossPlot(updates: readonly UpdateRecord[], evaluations: readonly EvaluationRecord[], run?: RunRecord): string {
  const smooth = smoothed(updates, "loss");
  const last = evaluations.at(-1);
  const end = Math.max(updates[updates.length - 1].step, last?.step ?? 0);
  const values = [...updates, ...evaluations].map(({ loss }) => loss).concat(run?.unigramEntropy ?? []);
  const marks = [
    ...logAxis(end),
    Plot.line(thinned(updates), { x: "step", y: "loss", stroke: BLUE, strokeWidth: 1, strokeOpacity: FAINT }),
    Plot.line(thinned(smooth), { x: "step", y: "value", stroke: BLUE, strokeWidth: 2 }),
    Plot.line(evaluations, { x: "step", y: "loss", stroke: ORANGE, strokeWidth: 1.5 }),
    Plot.dot(evaluations, { x: "step", y: "loss", fill: ORANGE, r: evaluations.length > 60 ? 2 : 3.5 }),
    endLabel(
      end,
      smooth[smooth.length - 1].value,
      "training",
      BLUE,
      last && last.loss > smooth[smooth.length - 1].value ? 9 : -9,
    ),
  ];
  if (last) {
    const lower = last.loss <= smooth[smooth.length - 1].value;
    marks.push(endLabel(end, last.loss, `held-out ${last.loss.toFixed(3)}`, ORANGE, lower ? 9 : -9));
  }
  if (run) marks.push(...reference(run.unigramEntropy, end));
  return draw({
    title: "Loss",
    subtitle: "mean nats a token; the faint line is each update, the strong one its running mean",
    x: { type: "log", axis: null },
    y: {
      type: "log",
      label: null,
      grid: true,
      ticks: logTicks(Math.min(...values), Math.max(...values)),
      tickFormat: plain,
    },
    marks,
    marginRight: 130,
  });
}

function reference(entropy: number, end: number): Plot.Markish[] {
  const text = `unigram entropy ${entropy.toFixed(2)}`;
  return [
    Plot.ruleY([entropy], { stroke: GRAY, strokeDasharray: "5,4" }),
    Plot.text([{ end, entropy }], {
      x: "end",
      y: "entropy",
      text: () => text,
      dy: -8,
      textAnchor: "end",
      fill: GRAY,
    }),
  ];
}

function endLabel(step: number, value: number, text: string, fill: string, dy: number): Plot.Markish {
  return Plot.text([{ step, value }], {
    x: "step",
    y: "value",
    text: () => text,
    dx: 8,
    dy,
    textAnchor: "start",
    fill,
    fontWeight: 600,
  });
}

interface CurveOptions {
  readonly title: string;
  readonly label: string;
  readonly log?: boolean;
  readonly fromZero?: boolean;
}

type Measure = "loss" | "gradNorm" | "learningRate" | "tokensPerSecond";

function curve(
  updates: readonly UpdateRecord[],
  measure: Measure,
  { title, label, log, fromZero }: CurveOptions,
): string {
  const finite = updates.filter((update) => Number.isFinite(update[measure]) && !(log && update[measure] <= 0));
  const values = finite.map((update) => update[measure]);
  const noisy = measure !== "learningRate";
  const mean = Plot.line(thinned(smoothed(finite, measure)), { x: "step", y: "value", stroke: BLUE, strokeWidth: 2 });
  const scale = log
    ? { type: "log" as const, ticks: logTicks(Math.min(...values), Math.max(...values)), tickFormat: plain }
    : { tickFormat: Math.max(...values) < 0.01 ? scientific : short };
  return draw({
    title,
    subtitle: noisy ? `${label}; the faint line is each update, the strong one its running mean` : label,
    x: { ...UPDATES, grid: true, ticks: 8, tickFormat: short },
    y: { label: null, grid: true, zero: fromZero, ...scale },
    marks: [
      Plot.line(thinned(finite), {
        x: "step",
        y: measure,
        stroke: BLUE,
        strokeWidth: noisy ? 1 : 2,
        strokeOpacity: noisy ? FAINT : 1,
      }),
      ...(noisy ? [mean] : []),
      ...(log ? [] : [Plot.ruleY([0], { strokeOpacity: fromZero ? 1 : 0 })]),
    ],
  });
}

const UPDATES = { label: "updates", labelAnchor: "center", labelArrow: "none" } as const;

/** The axis of a log scale leaves out labels even of given ticks, so it is drawn by hand. */
function logAxis(end: number): Plot.Markish[] {
  const ticks = logTicks(1, end);
  return [Plot.gridX(ticks), Plot.axisX(ticks, { ...UPDATES, text: ticks.map(short) })];
}

/** A running mean over earlier updates: about the last tenth of the way to each, sixty at most. */
function smoothed(updates: readonly UpdateRecord[], measure: Measure): { step: number; value: number }[] {
  let mean: number | undefined;
  return updates.map((update, index) => {
    const memory = 1 - 1 / Math.min(60, Math.max(1, index / 10));
    mean = mean === undefined ? update[measure] : memory * mean + (1 - memory) * update[measure];
    return { step: update.step, value: mean };
  });
}

/** As many of the points as can be seen, dense where a log axis spreads them. */
function thinned<T>(points: readonly T[]): T[] {
  if (points.length <= MOST_POINTS) return [...points];
  const kept = new Set<number>();
  for (let i = 0; i < MOST_POINTS; i++) {
    kept.add(Math.floor(i * (points.length - 1) / (MOST_POINTS - 1)));
    kept.add(Math.floor(points.length ** (i / (MOST_POINTS - 1))) - 1);
  }
  return points.filter((_, index) => kept.has(index));
}

/** Round numbers on a log axis: powers of ten with 2 and 5, or finer where the range is narrow. */
function logTicks(least: number, most: number): number[] {
  const decades = Math.log10(most / least);
  const steps = decades > 4 ? [1] : decades > 1 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9];
  const ticks: number[] = [];
  for (let power = Math.floor(Math.log10(least)); power <= Math.log10(most); power++) {
    ticks.push(...steps.map((step) => Number((step * 10 ** power).toPrecision(3))));
  }
  return ticks.filter((tick) => tick >= least && tick <= most);
}

function draw({ title, subtitle, ...options }: Plot.PlotOptions & { title: string; subtitle?: string }): string {
  const page = parseHTML("<!doctype html><body></body>") as unknown as Pick<Plot.PlotOptions, "document">;
  const size = { width: 860, height: 460, marginLeft: 64, marginRight: 30, marginTop: 66, marginBottom: 48 };
  const style = { fontFamily: "system-ui, sans-serif", fontSize: "13px", background: "white" };
  const svg = Plot.plot({ ...size, style, document: page.document, ...options });
  svg.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  const heading = (text: string, y: number, attributes: string) =>
    `<text x="24" y="${y}" text-anchor="start" fill="currentColor" ${attributes}>${escaped(text)}</text>`;
  const headings = heading(title, 26, `font-size="18" font-weight="600"`) +
    (subtitle ? heading(subtitle, 45, `font-size="12" fill-opacity="0.65"`) : "");
  return svg.outerHTML.replace(/<\/svg>$/, () => `${headings}</svg>\n`);
}

const plain = (tick: number) => String(tick);
const scientific = (tick: number) => tick === 0 ? "0" : tick.toExponential();
/** 1500 → 1.5k. */
const short = (tick: number) => tick >= 1e6 ? `${tick / 1e6}M` : tick >= 1000 ? `${tick / 1000}k` : String(tick);

function escaped(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}

/** For a person who asked for pictures of a run without any. */
export async function plotRun(run: string): Promise<string[]> {
  const files = await writePlots(run);
  if (files.length === 0) throw new UserError(`Nothing to plot: ${run} has measured no update yet`);
  return files;
}
