/** What a supervisor does about ranks that end, die, hang, or are to stop: with processes that train nothing. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { AdapterChoice } from "../../kernels/gpu/adapters.ts";
import type { readJob } from "../../train/job.ts";
import type { StartRanks } from "../../train/job_watch.ts";
import { afterFault, type Plan, supervise } from "../../train/supervisor.ts";
import { makeData, runTraining, settings, SMALL } from "./runs.ts";

const FAKE = fileURLToPath(new URL("./fake_rank.ts", import.meta.url));

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
  const { settings: { config }, adapters } = JSON.parse(Deno.readTextFileSync(join(folder, "job.json"))) as Awaited<
    ReturnType<typeof readJob>
  >;
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
