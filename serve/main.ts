/** The commands that answer: serve (HTTP), generate (terminal), tune, which makes both faster, and dashboard, which shows runs. Reads flags and exits; what is done stands elsewhere. */
import {
  choice,
  defaultsOf,
  flag,
  helpText,
  integer,
  number,
  parseFlags,
  type Table,
  text,
  texts,
  type Values,
} from "../model/arguments.ts";
import { type AdapterChoice, chooseAdapters, leftOut, listAdapters } from "../kernels/gpu/adapters.ts";
import { UserError } from "../model/errors.ts";
import { writeAllSync } from "../model/files.ts";
import { TextLineStream } from "../model/lines.ts";
import { weightFormats } from "../model/scope.ts";
import { reportFailure } from "../model/report.ts";
import { newestRun as newestFolder } from "../model/runs.ts";
import { findModel, type ModelPath, modelSource, newestRun, openModel } from "./open_model.ts";
import { createLog } from "./log.ts";
import type { ModelSource } from "./models.ts";
import { curlCommand, listen, type RunningServer, shutDown, startServer, urlOf } from "./server.ts";
import { describeSettings, engineOf, operationOf, readSettings, type Settings, settingsHelp } from "./settings.ts";
import { describeSpeed, writeCompletion } from "./terminal.ts";

const dtype = choice(weightFormats, "f32", "format of the weights in memory");

const generateFlags = {
  model: text("", "model folder; by default the newest run under runs/"),
  dtype,
  prompt: text("", "text to go on from; by default a new document"),
  maxTokens: integer(0, "tokens to generate at most; 0 for 128, or fewer where the context is full"),
  temperature: number(0.8, "0 takes the most likely token each time", { min: 0, max: 2 }),
  topP: number(0.95, "choose among the most likely tokens that have this probability together", { min: 0, max: 1 }),
  topK: integer(0, "choose among so many tokens; 0 among all"),
  minP: number(0, "leave out tokens less likely than this part of the most likely one's probability", {
    min: 0,
    max: 1,
  }),
  repetitionPenalty: number(1, "above 1 makes seen tokens less likely", { min: 0.01, max: 10 }),
  presencePenalty: number(0, "taken once from the logits of generated tokens", { min: -2, max: 2 }),
  frequencyPenalty: number(0, "taken from the logits of generated tokens each time", { min: -2, max: 2 }),
  stop: texts("end before this text; may be given up to four times"),
  seed: integer(-1, "the same seed gives the same text; -1 takes another each time", { min: -1 }),
  echo: flag("print the prompt too"),
  json: flag("print one JSON object at the end instead of text"),
};

const tuneFlags = {
  model: text("", "model folder; by default the newest run under runs/"),
  dtype,
  again: flag("time what was timed before again"),
  seconds: number(0, "time to spend at most; 0 sets no limit"),
};

const dashboardFlags = {
  port: integer(8080, "port to listen on; 0 takes a free one", { min: 0, max: 65535 }),
  host: text("127.0.0.1", "address to listen on; another one lets whoever reaches it see these runs"),
  wait: flag("show runs whose folders aren't there yet as soon as they are"),
  attached: flag("take further runs from standard input, one a line, and end when it closes, not by Ctrl-C"),
};

const find = (model: string): Promise<ModelPath> => model === "" ? newestRun() : findModel(model);

/** Reads a command's flags; undefined where only its help was wanted. */
function read<T extends Table>(usage: string, table: T, args: readonly string[]): Values<T> | undefined {
  const { values, help } = parseFlags(table, args);
  if (help) return void console.log(helpText(usage, table).trimEnd());
  return { ...defaultsOf(table), ...values };
}

/** Aborted by the first SIGINT or SIGTERM; the second ends the process. */
function untilSignal(): AbortSignal {
  const controller = new AbortController();
  const stop = () => controller.signal.aborted ? Deno.exit(130) : controller.abort();
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    if (signal === "SIGINT" || Deno.build.os !== "windows") Deno.addSignalListener(signal, stop);
  }
  return controller.signal;
}

const aborted = (signal: AbortSignal) =>
  new Promise<void>((resolve) => signal.aborted ? resolve() : signal.addEventListener("abort", () => resolve()));

/** Writes to standard output; a reader that has gone ends the process. */
function write(text: string): void {
  try {
    writeAllSync(Deno.stdout, new TextEncoder().encode(text));
  } catch (error) {
    if (error instanceof Deno.errors.BrokenPipe) Deno.exit(0);
    throw error;
  }
}

async function serve(args: readonly string[]): Promise<void> {
  const settings = await readSettings(args, (name) => Deno.env.get(name));
  if (!settings) {
    return console.log(
      settingsHelp("deno task serve [--model DIR]… [--port 8000]\n\nServes models over the OpenAI API.").trimEnd(),
    );
  }
  const operation = operationOf(settings);
  const sources = await sourcesOf(settings);
  const signal = untilSignal();
  const log = createLog({ level: settings.logLevel, format: settings.logFormat });
  const starting = startServer({ hostname: settings.host, port: settings.port, model: sources, log, ...operation });
  const server = await Promise.race([starting, aborted(signal)]);
  if (!server) return; // a signal came while loading: leaving ends the Workers
  announce(server, settings);
  await aborted(signal);
  console.error(`Closing: answers under way have ${settings.drainSeconds} s; a second signal ends them`);
  await server.drain(settings.drainSeconds);
  await server[Symbol.asyncDispose]();
}

/** The adapters named, or all GPUs; undefined where WebGPU's own choice does. */
async function adaptersOf(wanted: string): Promise<readonly AdapterChoice[] | undefined> {
  const found = await listAdapters();
  const chosen = chooseAdapters(found, wanted, 0);
  for (const line of leftOut(found, wanted)) console.error(`note: ${line}`);
  return wanted === "" && chosen.length === 1 ? undefined : chosen;
}

async function sourcesOf(settings: Settings): Promise<ModelSource[]> {
  const { dtype, lazy, chatTemplate } = settings;
  const adapters = await adaptersOf(settings.adapters);
  const options = {
    dtype,
    lazy,
    chatTemplate: chatTemplate || undefined,
    engine: engineOf(settings),
    adapters,
    warm: true,
  };
  return await Promise.all((settings.model.length > 0 ? settings.model : [""]).map(async (given) => {
    const path = await find(given);
    const source = await modelSource(path, options);
    return { ...source, open: () => (console.error(`Loading ${path.folder}`), source.open()) };
  }));
}

function announce({ models, url }: RunningServer, settings: Settings): void {
  console.error(describeSettings(settings));
  console.log(`Serving ${models.infos.map(({ id }) => id).join(", ")} at ${url}/v1`);
  for (const { name, engine, chat } of models.open) {
    const kind = chat ? "chats and completes" : "completes; --chat-template makes it chat";
    console.log(`  ${name}: context ${engine.contextLength}, vocabulary ${engine.vocabSize}, ${kind}`);
  }
  console.log(`Playground: ${url}/`);
  console.log(`Try it:\n  ${curlCommand(url, models.infos[0].id, settings.apiKey.length > 0)}`);
}

async function generate(args: readonly string[]): Promise<void> {
  const usage = "deno task generate [--model DIR] --prompt TEXT\n\nStreams a completion to the terminal.";
  const flags = read(usage, generateFlags, args);
  if (!flags) return;
  const seed = flags.seed >= 0 ? flags.seed : crypto.getRandomValues(new Uint32Array(1))[0];
  const fields = {
    prompt: flags.prompt,
    max_tokens: flags.maxTokens || undefined,
    temperature: flags.temperature,
    top_p: flags.topP,
    top_k: flags.topK,
    min_p: flags.minP,
    repetition_penalty: flags.repetitionPenalty,
    presence_penalty: flags.presencePenalty,
    frequency_penalty: flags.frequencyPenalty,
    stop: flags.stop.length > 0 ? flags.stop : null,
    echo: flags.echo,
    seed,
  };
  const signal = untilSignal();
  const path = await find(flags.model);
  console.error(`Loading ${path.folder}`);
  const model = await Promise.race([openModel(path, { dtype: flags.dtype }), aborted(signal)]);
  if (!model) return;
  const written = await writeCompletion(model, fields, flags.json ? () => {} : write, signal);
  write(flags.json ? JSON.stringify({ model: model.name, seed, ...written }) + "\n" : "\n");
  console.error(`${describeSpeed(written)} (seed ${seed})`);
  await model[Symbol.asyncDispose]();
}

async function tune(args: readonly string[]): Promise<void> {
  const usage = "deno task tune-serving [--model DIR]\n\n" +
    "Times the kernels that answer requests, on the GPU at hand, and keeps the fastest; serve and generate take them.";
  const flags = read(usage, tuneFlags, args);
  if (!flags) return;
  const { folder } = await find(flags.model);
  const { tuneServing } = await import("./tune.ts");
  await tuneServing(folder, {
    dtype: flags.dtype,
    again: flags.again,
    seconds: flags.seconds || Infinity,
    say: (line) => console.log(line),
  });
}

async function dashboard(args: readonly string[]): Promise<void> {
  const usage = "deno task dashboard [RUN…] [--port 8080]\n\nShows runs' curves live; with no RUN, the newest run's.";
  const { values, positionals, help } = parseFlags(dashboardFlags, args, { positionals: true });
  if (help) return console.log(helpText(usage, dashboardFlags).trimEnd());
  const { port, host: hostname, wait, attached } = { ...defaultsOf(dashboardFlags), ...values };
  const { checkRun, createDashboard, ShownRuns } = await import("./dashboard.ts");
  const runs = new ShownRuns(positionals.length > 0 || attached ? positionals : [await newestFolder()]);
  if (!wait) await Promise.all(runs.folders.map(checkRun));
  const closing = new AbortController();
  const server = listen({ hostname, port }, createDashboard(runs, closing.signal).fetch);
  console.log(`Dashboard: ${urlOf(server.addr)}/`);
  if (attached) await untilClosed((run) => runs.add(run));
  else await aborted(untilSignal());
  closing.abort();
  await shutDown(server);
}

/** Hears lines of standard input until it closes, as it does when whoever holds it ends. */
async function untilClosed(hear: (line: string) => void): Promise<void> {
  Deno.addSignalListener("SIGINT", () => {}); // a terminal's Ctrl-C means the one who holds it
  const lines = Deno.stdin.readable.pipeThrough(new TextDecoderStream()).pipeThrough(new TextLineStream());
  for await (const line of lines) if (line !== "") hear(line);
}

const commands: Readonly<Record<string, (args: readonly string[]) => Promise<void>>> = {
  serve,
  generate,
  tune,
  dashboard,
};

async function main([name, ...args]: readonly string[]): Promise<void> {
  const command = Object.hasOwn(commands, name ?? "") ? commands[name] : undefined;
  if (!command) {
    throw new UserError(`Give a command, ${Object.keys(commands).join(" or ")}: found ${name ?? "none"}`, 2);
  }
  await command(args);
}

if (import.meta.main) {
  try {
    await main(Deno.args);
    Deno.exit(0);
  } catch (error) {
    Deno.exit(reportFailure(error));
  }
}
