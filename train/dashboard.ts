/** The dashboard beside a run: serve's command as a child process that ends with this one, however that ends. It knows no HTTP. */
import { fileURLToPath } from "node:url";
import project from "../deno.json" with { type: "json" };
import { UserError } from "../model/errors.ts";
import { denoCommand, permissionsOf } from "./deno_process.ts";

/** A page that is up; disposal ends its process. */
export interface Dashboard extends AsyncDisposable {
  readonly url: string;
  /** Shows a run from now on. */
  show(run: string): void;
  /** Resolves when the process ends, by itself too. */
  readonly ended: Promise<void>;
}

/** Starts the dashboard on a port; 0 takes a free one. @throws UserError where it can't be had; the child said why. */
export async function startDashboard(port: number): Promise<Dashboard> {
  const [config, main] = ["../deno.json", "../serve/main.ts"].map((path) =>
    fileURLToPath(new URL(path, import.meta.url))
  );
  const permissions = permissionsOf(project.tasks.dashboard.command);
  const child = spawn([
    "run",
    "--config",
    config,
    ...permissions,
    main,
    "dashboard",
    "--attached",
    "--port",
    `${port}`,
  ]);
  const said = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  let line = "";
  for (let part; !line.includes("\n") && !(part = await said.read()).done;) line += part.value;
  const url = /^Dashboard: (\S+)/.exec(line)?.[1];
  const input = child.stdin.getWriter();
  const ended = child.status.then(() => {});
  if (url === undefined) {
    await ended;
    throw new UserError("Cannot start the dashboard: choose another --dashboard PORT, or train without it");
  }
  return {
    url,
    ended,
    show: (run) => void input.write(new TextEncoder().encode(`${run}\n`)).catch(() => {}), // it may have ended
    async [Symbol.asyncDispose]() {
      await input.close().catch(() => {});
      await ended;
      await said.cancel();
    },
  };
}

function spawn(args: readonly string[]): Deno.ChildProcess {
  try {
    return new Deno.Command(denoCommand(), { args: [...args], stdin: "piped", stdout: "piped" }).spawn();
  } catch (error) {
    if (!(error instanceof Deno.errors.NotCapable)) throw error;
    throw new UserError("Cannot start the dashboard: run this as `deno task train`, with deno in the PATH", 4);
  }
}
