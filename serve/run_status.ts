/** Where a run stands: whether it goes on, how far it is, what it last said. It reads a run's folder and knows no page. */
import { basename, resolve } from "node:path";
import { type EvaluationRecord, parseRecord, type RunRecord, type UpdateRecord } from "../model/run_metrics.ts";
import { openInside, readRange } from "./run_reader.ts";

/** Nothing measured yet; going on; all updates done; silent for long, stopped or hung; its folder is gone. */
export type State = "waiting" | "running" | "finished" | "stalled" | "removed";

export interface RunStatus {
  readonly name: string;
  readonly folder: string;
  readonly state: State;
  readonly step: number;
  /** 0 where the run didn't say. */
  readonly steps: number;
  readonly secondsLeft: number | null;
  /** When it last wrote, in milliseconds since 1970; null where it hasn't. */
  readonly changed: number | null;
  readonly run: RunRecord | null;
  readonly loss: number | null;
  readonly heldOutLoss: number | null;
  readonly config: Readonly<Record<string, unknown>>;
  /** Latest last. */
  readonly samples: readonly Sample[];
}

export interface Sample {
  readonly step: number;
  readonly text: string;
}

/** Bytes of a file's beginning or end that are looked at. */
const GLANCE = 1 << 16;
const SAMPLES = 5;
/** A run is silent while it compiles, evaluates and writes checkpoints: so many seconds, or so many updates' time. */
const SILENCE_SECONDS = 90;
const SILENCE_UPDATES = 30;

/** Reads where the run in a folder stands; `seen` is whether it was there before. */
export async function readStatus(folder: string, seen: boolean, now = Date.now()): Promise<RunStatus> {
  const [metrics, samples, config] = await Promise.all([
    glance(folder, "metrics.jsonl"),
    glance(folder, "samples.txt"),
    glance(folder, "config.json"),
  ]);
  const there = await Deno.stat(folder).then(({ isDirectory }) => isDirectory, () => false);
  const settings = parseObject(config.head);
  const records = metrics.tail.split("\n").map(parseRecord).filter((record) => record !== undefined);
  const updates = records.filter((record): record is UpdateRecord => record.kind === "update");
  const evaluation = records.findLast((record): record is EvaluationRecord => record.kind === "evaluation");
  const first = parseRecord(metrics.head.split("\n")[0]);
  const last = updates.at(-1);
  const step = last?.step ?? 0;
  const steps = last?.steps || Number(settings.steps) || 0;
  const pace = secondsAStep(updates);
  const changed = Math.max(metrics.time, samples.time, config.time) || null;
  const patience = 1000 * Math.max(SILENCE_SECONDS, SILENCE_UPDATES * pace);
  const state = () => {
    if (!there) return seen ? "removed" : "waiting";
    if (steps > 0 && step >= steps) return "finished";
    if (changed !== null && now - changed > patience) return "stalled";
    return last === undefined ? "waiting" : "running";
  };
  return {
    name: basename(resolve(folder)),
    folder,
    state: state(),
    step,
    steps,
    secondsLeft: steps > 0 && pace > 0 ? Math.round((steps - step) * pace) : null,
    changed,
    run: first?.kind === "run" ? first : null,
    loss: last?.loss ?? null,
    heldOutLoss: evaluation?.loss ?? null,
    config: settings,
    samples: parseSamples(samples.tail),
  };
}

interface Glance {
  readonly head: string;
  readonly tail: string;
  readonly time: number;
}

async function glance(folder: string, name: string): Promise<Glance> {
  using file = await openInside(folder, name);
  if (file === undefined) return { head: "", tail: "", time: 0 };
  const { size, mtime } = await file.stat();
  const head = new TextDecoder().decode(await readRange(file, 0, Math.min(size, GLANCE)));
  const from = Math.max(0, size - GLANCE);
  const tail = from === 0 ? head : new TextDecoder().decode(await readRange(file, from, size - from));
  return { head, tail, time: Number(mtime ?? 0) };
}

function parseObject(text: string): Record<string, unknown> {
  try {
    const value = JSON.parse(text);
    return typeof value === "object" && value !== null && !Array.isArray(value) ? value : {};
  } catch {
    return {}; // half written, or no config
  }
}

/** Median over the last updates, in which a pause for a checkpoint doesn't count. */
function secondsAStep(updates: readonly UpdateRecord[]): number {
  const times = updates.slice(-33).flatMap(({ step, tokens, tokensPerSecond }, i, all) => {
    if (i === 0 || !(tokensPerSecond > 0)) return [];
    return [(tokens - all[i - 1].tokens) / (step - all[i - 1].step) / tokensPerSecond];
  }).sort((a, b) => a - b);
  const median = times[times.length >> 1];
  return median > 0 && Number.isFinite(median) ? median : 0;
}

function parseSamples(text: string): Sample[] {
  const parts = text.split(/^=== step (\d+) ===$/m);
  return Array.from({ length: parts.length >> 1 }, (_, i) => ({
    step: Number(parts[2 * i + 1]),
    text: parts[2 * i + 2].trim(),
  })).slice(-SAMPLES);
}
