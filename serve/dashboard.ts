/** Runs as a page: their curves live, by server-sent events, from their folders alone. It trains nothing and knows no model. */
import { setTimeout as delay } from "node:timers/promises";
import { type Context, Hono } from "hono";
import uplotStyle from "uplot/dist/uPlot.min.css" with { type: "text" };
import uplot from "uplot/dist/uPlot.iife.min.js" with { type: "text" };
import { UserError } from "../model/errors.ts";
import charts from "./page/charts.js" with { type: "text" };
import curves from "./page/curves.js" with { type: "text" };
import css from "./page/dashboard.css" with { type: "text" };
import html from "./page/dashboard.html" with { type: "text" };
import page from "./page/dashboard.js" with { type: "text" };
import details from "./page/details.js" with { type: "text" };
import icon from "./page/icon.svg" with { type: "text" };
import style from "./page/style.css" with { type: "text" };
import theme from "./page/theme.js" with { type: "text" };
import { streamEvents, type WriteEvents } from "./events.ts";
import { RunReader } from "./run_reader.ts";
import { readStatus, type RunStatus } from "./run_status.ts";
import { addFiles } from "./static.ts";

const files = {
  "dashboard.html": html,
  "dashboard.css": css,
  "style.css": style,
  "uplot.css": uplotStyle,
  "icon.svg": icon,
  "charts.js": charts,
  "curves.js": curves,
  "dashboard.js": page,
  "details.js": details,
  "theme.js": theme,
  "uplot.js": uplot,
};

export interface DashboardOptions {
  /** Milliseconds between two looks at the runs' folders. Default: 500. */
  readonly every?: number;
  /** Milliseconds without news after which a comment says that the connection lives. Default: 15 s. */
  readonly ping?: number;
}

/** The runs that are shown, in the order of their colors; more may come. */
export class ShownRuns {
  readonly #folders: string[] = [];
  readonly #seen = new Set<string>();

  constructor(folders: readonly string[] = []) {
    folders.forEach((folder) => this.add(folder));
  }

  get folders(): readonly string[] {
    return this.#folders;
  }

  add(folder: string): void {
    if (!this.#folders.includes(folder)) this.#folders.push(folder);
  }

  async statuses(): Promise<RunStatus[]> {
    return await Promise.all(this.#folders.map(async (folder) => {
      const status = await readStatus(folder, this.#seen.has(folder));
      if (status.changed !== null) this.#seen.add(folder);
      return status;
    }));
  }
}

/** @throws UserError where there is no such folder, or it is no run's. */
export async function checkRun(folder: string): Promise<void> {
  const names = await Array.fromAsync(Deno.readDir(folder), ({ name }) => name).catch((error) => {
    const reason = error instanceof Deno.errors.NotFound ? "there is none" : (error as Error).message;
    throw new UserError(`Give a run's folder, or --wait for it: found ${folder}, and ${reason}`);
  });
  if (names.includes("config.json") || names.includes("metrics.jsonl")) return;
  throw new UserError(`Give a run's folder: ${folder} holds neither config.json nor metrics.jsonl`);
}

/** The page at `/`, where runs stand at `/api/runs`, and what they measure at `/events`. Events end when `closing` is aborted. */
export function createDashboard(runs: ShownRuns, closing: AbortSignal, options: DashboardOptions = {}): Hono {
  const app = new Hono();
  addFiles(app, "dashboard.html", files);
  app.get("/api/runs", async (c) => {
    c.header("Cache-Control", "no-store");
    c.header("X-Content-Type-Options", "nosniff");
    return c.json(await runs.statuses());
  });
  app.get("/events", (c) => sendNews(c, runs, closing, options));
  return app;
}

function sendNews(c: Context, runs: ShownRuns, closing: AbortSignal, options: DashboardOptions): Response {
  const { every = 500, ping = 15_000 } = options;
  const positions = (c.req.header("Last-Event-ID") ?? "").split(",");
  return streamEvents(c, ping, async (send, hungUp) => {
    const over = AbortSignal.any([closing, hungUp]);
    const news = new News(runs, positions, hungUp, send);
    while (!over.aborted) {
      await news.send();
      await delay(every, undefined, { signal: over }).catch(() => {});
    }
  });
}

/** What one listener hasn't heard yet. An event's id says how far it has read each run. */
class News {
  readonly #readers: RunReader[] = [];
  #said = "";

  constructor(
    readonly runs: ShownRuns,
    readonly positions: readonly string[],
    readonly hungUp: AbortSignal,
    readonly write: Parameters<WriteEvents>[0],
  ) {}

  async send(): Promise<void> {
    const statuses = JSON.stringify(await this.runs.statuses());
    if (statuses !== this.#said) await this.write({ event: "runs", data: this.#said = statuses });
    for (const folder of this.runs.folders.slice(this.#readers.length)) {
      this.#readers.push(new RunReader(folder, this.positions[this.#readers.length]));
    }
    for (const [run, reader] of this.#readers.entries()) {
      for await (const batch of reader.read()) {
        if (this.hungUp.aborted) return;
        const id = this.#readers.map(({ position }) => position).join(",");
        await this.write({ event: "records", id, data: JSON.stringify({ run, ...batch }) });
      }
    }
  }
}
