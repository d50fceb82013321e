/** What a supervisor does about ranks that end, die, hang, or are to stop: with processes that train nothing. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { AdapterChoice } from "../../kernels/gpu/adapters.ts";
import { type Job, readJob } from "../../train/job.ts";
import type { StartRanks } from "../../train/job_watch.ts";
import { afterFault, type Plan, supervise } from "../../train/supervisor.ts";
import { isThere, processes, until } from "./left_behind.ts";
import { makeData, runTraining, settings, SMALL } from "./runs.ts";

const [FAKE, SUPERVISOR, CONFIG] = ["./fake_rank.ts", "./fake_supervisor.ts", "../../deno.json"].map((path) => {
  return fileURLToPath(new URL(path, import.meta.url));
});

function adapter(name: string, id: string | null = null): AdapterChoice {
  return { name, id, type: "discrete", environment: {}, powerPreference: "high-performance" };
}
const [A, B] = [adapter("GPU A", "a"), adapter("GPU B", "b")];

interface Supervised {
  readonly code: number;
  /** What the supervisor said. */
  readonly said: readonly string[];
  /** Settings and adapters of each job. */
  readonly jobs: readonly { readonly out: string; readonly resume: boolean; readonly adapters: readonly string[] }[];
}

/** Supervises fake ranks: `orders` of each rank, for each job in turn. */
async function supervised(
  orders: readonly (readonly string[])[],
  { adapters = [A, B], flags = [] as readonly string[] } = {},
): Promise<Supervised> {
  const said: string[] = [];
  const jobs: Supervised["jobs"][number][] = [];
  const folders = new Set<string>();
  const pids: number[] = [];
  const start: StartRanks = (folder, rank) => {
    folders.add(folder);
    const child = new Deno.Command(Deno.execPath(), {
      args: ["run", "-q", "--allow-all", FAKE, folder, `${rank ?? "-"}`, orders[folders.size - 1][rank ?? 0]],
      stdin: "null",
    }).spawn();
    pids.push(child.pid);
    if (rank === null || rank === 0) jobs.push(seen(folder));
    return child;
  };
  const config = await settings("--isolation", "process", ...flags);
  const code = await supervise(config, adapters, { console: { line: (text) => said.push(text) }, start });
  for (const folder of folders) await assert.rejects(Deno.stat(folder), Deno.errors.NotFound);
  for (const pid of pids) assert.throws(() => Deno.kill(pid, "SIGCONT"), Deno.errors.NotFound);
  return { code, said, jobs };
}

function seen(folder: string): Supervised["jobs"][number] {
  const { settings: { config }, adapters } = JSON.parse(Deno.readTextFileSync(join(folder, "job.json"))) as Job;
  return { out: config.out, resume: config.resume, adapters: adapters.map(({ name }) => name) };
}

Deno.test("ranks that end well are a run that is done", async () => {
  const { code, said, jobs } = await supervised([["exit=0", "exit=0"]]);
  assert.deepEqual({ code, said, jobs: jobs.length }, { code: 0, said: [], jobs: 1 });
});

Deno.test("what a user must mend ends all ranks with its exit code, and nothing is tried again", async () => {
  const { code, said } = await supervised([["user=4", "wait"]]);
  assert.deepEqual({ code, said }, { code: 4, said: [] });
  const other = await supervised([["wait", "user=3"]]);
  assert.deepEqual(other.code, 3);
});

Deno.test("a rank that was killed is started again, with the others, before a run is known anew", async () => {
  const { code, said, jobs } = await supervised([["wait", "die"], ["exit=0", "exit=0"]]);
  assert.equal(code, 0);
  assert.deepEqual(said, [
    "rank 1 (GPU B) was killed by SIGKILL before its first step; starting again (restart 1 of 3, in 1 s)",
  ]);
  assert.deepEqual(jobs.map(({ resume }) => resume), [false, false]);
});

Deno.test("a run is gone on with from its newest checkpoint, without an adapter that failed twice", async () => {
  const root = await Deno.makeTempDir();
  await makeData(join(root, "data"));
  const run = join(root, "run");
  await runTraining([...SMALL, "--data", join(root, "data"), "--out", run], { stopAt: /^step 8\// });
  const { code, said, jobs } = await supervised([
    [`run=${run};step=11;wait`, "step=0;step=0;step=0;fault=the driver is gone."],
    [`run=${run};abandoned`, "step=0;user=3"],
    ["exit=0"],
  ]);
  await Deno.remove(root, { recursive: true });
  assert.equal(code, 0);
  assert.deepEqual(said, [
    "rank 1 (GPU B) failed after step 11: the driver is gone; going on from step 9 (restart 1 of 3, in 1 s)",
    "rank 1 (GPU B) failed before its first step: the disk is full; going on from step 9, " +
    "without GPU B as that was its second fault, with 1 rank (restart 2 of 3, in 2 s)",
  ]);
  assert.deepEqual(jobs, [
    { out: "", resume: false, adapters: ["GPU A", "GPU B"] },
    { out: run, resume: true, adapters: ["GPU A", "GPU B"] },
    { out: run, resume: true, adapters: ["GPU A"] },
  ]);
});

Deno.test("after a fault: a wait that doubles, an adapter less after its second fault, an end after enough", () => {
  const waits: number[] = [];
  let plan: Plan = { adapters: [A], faults: [] };
  for (let next = afterFault(plan, null, 8); next !== undefined; next = afterFault(plan, null, 8)) {
    waits.push(next.wait);
    plan = next;
  }
  assert.deepEqual(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
  assert.equal(afterFault({ adapters: [A], faults: [] }, 0, 0), undefined);

  const first = afterFault({ adapters: [A, B, A], faults: [] }, 2, 9)!;
  assert.deepEqual([first.adapters, first.faults, first.leftOut], [[A, B, A], ["a"], null]);
  const other = afterFault(first, 1, 9)!;
  assert.deepEqual([other.adapters, other.leftOut], [[A, B, A], null]);
  const second = afterFault(other, 0, 9)!;
  assert.deepEqual([second.adapters, second.leftOut], [[B], "GPU A"]);
  const last = afterFault(second, 0, 9)!;
  assert.deepEqual([last.adapters, last.leftOut], [[B], null], "there is no other adapter");
  const alike = [adapter("one model"), adapter("one model")];
  assert.deepEqual(afterFault({ adapters: alike, faults: ["one model"] }, 0, 9)!.adapters, alike);
});

Deno.test("a rank that gives no sign of life is killed and started again; ranks that wait for it are not blamed", async () => {
  const { code, said } = await supervised([["wait", "step=3;freeze"], ["exit=0", "exit=0"]], {
    flags: ["--hang-seconds", "1"],
  });
  assert.equal(code, 0);
  assert.deepEqual(said, [
    "rank 1 (GPU B) gave no sign of life for 1 s after step 3; starting again (restart 1 of 3, in 1 s)",
  ]);
});

Deno.test("ranks that give up on each other are started again, and nobody is blamed", async () => {
  const { said } = await supervised([["abandoned", "abandoned"], ["exit=0", "exit=0"]]);
  assert.deepEqual(said, [
    "one of 2 ranks ended without a reason before its first step; starting again (restart 1 of 3, in 1 s)",
  ]);
});

Deno.test("after enough faults the supervisor gives up, and says how to go on", async () => {
  const runs = "runs/lost-001";
  const { code, said } = await supervised([["die"], [`run=${runs};exit=9`]], {
    adapters: [A],
    flags: ["--max-restarts", "1"],
  });
  assert.equal(code, 1);
  assert.deepEqual(said, [
    "rank 0 (GPU A) was killed by SIGKILL before its first step; starting again (restart 1 of 1, in 1 s)",
    "error: rank 0 (GPU A) ended with exit code 9 before its first step; giving up after 1 restart; " +
    "go on with: deno task train --out runs/lost-001 --resume",
  ]);
});

function start(temporary: string, orders: readonly [string, string], ...flags: readonly string[]): Deno.ChildProcess {
  return new Deno.Command(Deno.execPath(), {
    args: ["run", "-q", "--allow-all", "--config", CONFIG, SUPERVISOR, ...orders, ...flags],
    env: { TMPDIR: temporary, NO_COLOR: "1" },
    stdin: "null",
    stdout: "piped",
  }).spawn();
}

/** A supervisor in a process of its own, whose temporary files are looked for when it is gone. */
async function underSupervision(
  orders: readonly [string, string],
  act: (supervisor: Deno.ChildProcess, job: string) => Promise<void>,
  ...flags: readonly string[]
) {
  const temporary = await Deno.makeTempDir();
  const child = start(temporary, orders, ...flags);
  const output = new Response(child.stdout).text();
  const job = await until(() => folderWith(temporary, ["beat-0.json", "beat-1.json"]));
  const { sharedMemory } = await readJob(job);
  await act(child, job);
  const { code } = await child.status;
  await until(async () => !await isThere(sharedMemory!));
  await until(() => [...Deno.readDirSync(temporary)].length === 0);
  await Deno.remove(temporary);
  return { code, said: (await output).trim().split("\n") };
}

/** The folder in `root` that holds these files; undefined while there is none. */
function folderWith(root: string, names: readonly string[]): string | undefined {
  for (const { name } of Deno.readDirSync(root)) {
    const folder = join(root, name);
    const found = [...Deno.readDirSync(folder)].map(({ name }) => name);
    if (names.every((name) => found.includes(name))) return folder;
  }
}

Deno.test("a signal ends the run by rank 0, also where the terminal sends it to all; a second one ends it at once", async () => {
  const polite = await underSupervision(["wait", "wait"], (child) => {
    child.kill("SIGINT");
    child.kill("SIGTERM"); // as the same Ctrl-C by another way
    return Promise.resolve();
  });
  assert.deepEqual(polite, { code: 0, said: ["stopping after this step; once more stops now"] });

  const twice = await underSupervision(["stubborn", "stubborn"], async (child) => {
    child.kill("SIGINT");
    await new Promise((resolve) => setTimeout(resolve, 600));
    child.kill("SIGINT");
  });
  assert.deepEqual(twice, {
    code: 130,
    said: ["stopping after this step; once more stops now", "stopped at once; no run had begun"],
  });
});

Deno.test("a signal during the wait before a restart ends it, and a fault after a signal isn't mended", async () => {
  const heard = "stopping after this step; once more stops now";
  const wayOn = "go on with: deno task train --out runs/it --resume";
  const waiting = await underSupervision(["run=runs/it;wait", "step=1;die"], async (child, job) => {
    await until(async () => !await isThere(job)); // it waits when the job's folder is gone
    child.kill("SIGTERM");
  }, ...["--max-restarts", "1"]);
  assert.deepEqual(waiting, {
    code: 130,
    said: [
      "rank 1 (GPU B) was killed by SIGKILL after step 1; starting again (restart 1 of 1, in 1 s)",
      heard,
      `stopped before going on; ${wayOn}`,
    ],
  });

  const failing = await underSupervision(["run=runs/it;stubborn=dies", "wait"], async (child) => {
    await new Promise((resolve) => setTimeout(resolve, 300)); // its handler is there
    child.kill("SIGTERM");
  });
  const said = `error: rank 0 (GPU A) was killed by SIGKILL before its first step; it was to stop; ${wayOn}`;
  assert.deepEqual(failing, { code: 1, said: [heard, said] });
});

Deno.test("ranks whose supervisor was killed end by themselves and leave nothing", async () => {
  const { code } = await underSupervision(["wait", "stubborn"], (child) => {
    child.kill("SIGKILL");
    return Promise.resolve();
  });
  assert.equal(code, 137);
});

Deno.test("shared memory has its name only until every rank has mapped it", async () => {
  await underSupervision(["wait", "wait"], async (child, job) => {
    const { sharedMemory } = await readJob(job);
    await until(async () => !await isThere(sharedMemory!));
    child.kill("SIGTERM");
  });
});

Deno.test("a supervisor that stood still together with its ranks, as by Ctrl-Z, takes none for dead", async () => {
  const { code, said } = await underSupervision(["wait", "wait"], async (child, job) => {
    const ranks = (await processes(job)).map(({ pid }) => pid);
    for (const pid of [child.pid, ...ranks]) Deno.kill(pid, "SIGSTOP");
    await new Promise((resolve) => setTimeout(resolve, 2000));
    Deno.kill(child.pid, "SIGCONT");
    await new Promise((resolve) => setTimeout(resolve, 300)); // it looks after them before they go on
    for (const pid of ranks) Deno.kill(pid, "SIGCONT");
    await new Promise((resolve) => setTimeout(resolve, 300));
    child.kill("SIGTERM");
  }, ...["--hang-seconds", "1"]);
  assert.deepEqual({ code, said }, { code: 0, said: ["stopping after this step; once more stops now"] });
});

Deno.test("what a supervisor left that was killed with all its ranks goes with the next one", async () => {
  const temporary = await Deno.makeTempDir();
  const killed = start(temporary, ["wait", "wait"]);
  const left = await until(() => folderWith(temporary, ["beat-0.json"]));
  const { sharedMemory } = await readJob(left);
  const ranks = (await processes(left)).map(({ pid }) => pid);
  for (const pid of [killed.pid, ...ranks]) Deno.kill(pid, "SIGSTOP"); // so that none sees another end
  for (const pid of [killed.pid, ...ranks]) Deno.kill(pid, "SIGKILL");
  await killed.status;
  assert.ok(await isThere(left));
  const next = start(temporary, ["exit=0", "exit=0"]);
  assert.equal((await next.status).code, 0);
  assert.deepEqual([...Deno.readDirSync(temporary)], []);
  assert.ok(!await isThere(sharedMemory!));
  await Deno.remove(temporary);
});
