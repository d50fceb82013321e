/** The commands of training: train, prepare, evaluate, plot, tune, adapters. The only file of the room that reads arguments or exits. */
import { closest, helpText, parseFlags } from "../model/arguments.ts";
import { UserError } from "../model/errors.ts";
import { writeAllSync } from "../model/files.ts";
import { reportFailure } from "../model/report.ts";
import { readSettings } from "./config.ts";
import { type Console, createConsole } from "./console.ts";

const PLOT_USAGE = `Draws a run's metrics as SVG files in its plots folder.

  deno task plot RUN`;

/** A command that none but this program gives. */
const HIDDEN = "rank";

const commands: Readonly<Record<string, (args: readonly string[]) => Promise<number | void>>> = {
  async train(args) {
    const asked = await readSettings(args);
    if ("help" in asked) return print(asked.help);
    const { settled } = await import("./run_folder.ts");
    const settings = await settled(asked); // a run's own adapters, where it is gone on with
    const { chooseAdapters, leftOut, listAdapters } = await import("../kernels/gpu/adapters.ts");
    const { adapters, ranks } = settings.config;
    const found = await listAdapters();
    const chosen = chooseAdapters(found, adapters, ranks);
    const { planRun } = await import("./dry_run.ts");
    const planned = await planRun(settings, chosen); // before minutes go into data that nothing can train on
    if (planned !== undefined) return print(planned);
    if (settings.config.communicator === "mpi") {
      const { runMpiProcess } = await import("./mpi_process.ts");
      return await runMpiProcess(settings, chosen, (code) => Deno.exit(code));
    }
    const { supervise } = await import("./supervisor.ts");
    const console = createConsole({ shared: true });
    leftOut(found, adapters).forEach((line) => console.line(line));
    return await withDashboard(settings.config.dashboard, console, (onRun) => {
      return supervise(settings, chosen, { console, onRun });
    });
  },
  /** What a supervisor starts: a rank of the job in a folder, or all of its ranks. */
  async [HIDDEN]([folder, number]) {
    const { runJobProcess } = await import("./job_process.ts");
    return await runJobProcess(folder, number === undefined ? null : Number(number), (code) => Deno.exit(code));
  },
  async prepare(args) {
    const { prepareCommand } = await import("./prepare_command.ts");
    await prepareCommand(args);
  },
  async evaluate(args) {
    const [{ evaluateCommand }, { openScorer }] = await Promise.all([
      import("./evaluate.ts"),
      import("./gpu_scorer.ts"),
    ]);
    print(await evaluateCommand(args, openScorer));
  },
  async plot(args) {
    const { positionals: [run, more], help } = parseFlags({}, args, { positionals: true });
    if (help) return print(helpText(PLOT_USAGE, {}));
    if (run === undefined || more !== undefined) throw new UserError("Name one run: deno task plot RUN", 2);
    const { plotRun } = await import("./plot.ts");
    print((await plotRun(run)).map((file) => `${file}\n`).join(""));
  },
  async tune(args) {
    const [{ tuneCommand }, { openChosenLearner }] = await Promise.all([
      import("./tune_command.ts"),
      import("./gpu_learner.ts"),
    ]);
    print(await tuneCommand(args, { openLearner: openChosenLearner, console: createConsole() }));
  },
  async adapters(args) {
    const { adaptersCommand } = await import("./adapters.ts");
    print(await adaptersCommand(args));
  },
};

/** Does the work with a dashboard beside it, where a port was given for one. */
async function withDashboard(
  port: string,
  console: Console,
  work: (onRun?: (run: string) => void) => Promise<number>,
): Promise<number> {
  if (port === "") return await work();
  const { startDashboard } = await import("./dashboard.ts");
  await using dashboard = await startDashboard(Number(port));
  console.line(`dashboard: ${dashboard.url}`);
  let working = true;
  dashboard.ended.then(() => working && console.line("the dashboard has ended; training goes on without it"));
  try {
    return await work((run) => dashboard.show(run));
  } finally {
    working = false;
  }
}

function print(text: string): void {
  writeAllSync(Deno.stdout, new TextEncoder().encode(text));
}

async function run([name, ...args]: readonly string[]): Promise<number> {
  try {
    const command = name === undefined ? undefined : commands[name];
    if (command === undefined) {
      const names = Object.keys(commands).filter((name) => name !== HIDDEN);
      const known = name === undefined ? undefined : closest(name, names);
      const list = names.join(", ");
      throw new UserError(
        `Unknown command ${name ?? "(none)"}: ${known ? `did you mean ${known}?` : `wanted ${list}`}`,
        2,
      );
    }
    return await command(args) ?? 0;
  } catch (error) {
    return reportFailure(error);
  }
}

if (import.meta.main) Deno.exit(await run(Deno.args));
