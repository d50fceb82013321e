/** Ranks under mpirun, by Open MPI and by MPICH: the bits of shared memory, overlapping calls, faults, whole runs. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { adaptersOf, placeHere } from "../../train/mpi_process.ts";
import { canMakeHosts, makeHosts } from "./hosts.ts";
import type { MpiTask } from "./mpi_child.ts";
import { LENGTHS, summand } from "./rank_tasks.ts";
import { bits, makeData } from "./runs.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const CHILD = fileURLToPath(new URL("./mpi_child.ts", import.meta.url));
const { tasks } = JSON.parse(Deno.readTextFileSync(join(ROOT, "deno.json")));
const [, ...TASK]: string[] = tasks.train.command.split(" ");

interface Launcher {
  readonly name: string;
  readonly command: string;
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string>>;
}

const LAUNCHERS: readonly Launcher[] = [
  {
    name: "Open MPI",
    command: "mpirun.openmpi",
    args: ["--oversubscribe", ...(Deno.uid() === 0 ? ["--allow-run-as-root"] : [])],
    // Ranks that wait leave the cores to others; without it four of them starve a machine of two.
    env: { OMPI_MCA_mpi_yield_when_idle: "1", OMPI_MCA_btl_vader_single_copy_mechanism: "none" },
  },
  { name: "MPICH", command: "mpirun.mpich", args: [], env: {} },
];

function isInstalled({ command }: Launcher): boolean {
  return (Deno.env.get("PATH") ?? "").split(":").some((folder) => {
    try {
      return Deno.statSync(join(folder, command)).isFile;
    } catch {
      return false;
    }
  });
}

/** A test with each library; where it isn't installed it is ignored and says so. */
function withMpi(name: string, test: (launcher: Launcher) => Promise<void>): void {
  for (const launcher of LAUNCHERS) {
    const there = isInstalled(launcher);
    const ignored = there ? "" : " (ignored: not installed; sudo apt-get install openmpi-bin mpich)";
    Deno.test({ name: `${launcher.name}: ${name}${ignored}`, ignore: !there, fn: () => test(launcher) });
  }
}

async function launch({ command, args, env }: Launcher, ranks: number, program: readonly string[]) {
  const child = new Deno.Command(command, {
    args: [...args, "-n", `${ranks}`, Deno.execPath(), ...program],
    cwd: ROOT,
    env: { NO_COLOR: "1", ...env },
    stdin: "null",
  });
  const { code, stdout, stderr } = await child.output();
  return { code, said: [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes)).join("") };
}

interface Word<T> {
  readonly result: T;
  readonly waits: number;
  readonly size: number;
}

/** What each rank's calls gave, by rank; empty for those that left no word. */
async function run<T>(launcher: Launcher, ranks: number, task: MpiTask["task"], workers = 0) {
  const folder = await Deno.makeTempDir();
  try {
    const job: MpiTask = { task, folder, workers };
    const program = ["run", "--no-prompt", "--allow-all", "-q", CHILD, JSON.stringify(job)];
    const ended = await launch(launcher, ranks, program);
    const words: Word<T>[] = [];
    for (const { name } of Deno.readDirSync(folder)) {
      words[Number(name.split(".")[0])] = JSON.parse(Deno.readTextFileSync(join(folder, name)));
    }
    return { ...ended, words };
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** FNV-1a of the sum in rank order, rounded to f32 after each addition. */
function expectedHash(size: number, length: number): number {
  const sum = summand(0, length);
  for (let rank = 1; rank < size; rank++) {
    summand(rank, length).forEach((value, i) => sum[i] = Math.fround(sum[i] + value));
  }
  return new Uint8Array(sum.buffer).reduce((hash, byte) => Math.imul(hash ^ byte, 16777619), 2166136261);
}

withMpi("sums of two and four ranks are taken in rank order, the same bits on each", async (launcher) => {
  for (const size of [2, 4]) {
    const { words, code, said } = await run<number[][]>(launcher, size, "sums");
    assert.equal(code, 0, said);
    assert.equal(words.length, size);
    for (const { result } of words) assert.deepEqual(result, words[0].result);
    LENGTHS.forEach((length, i) => assert.equal(words[0].result[i][0], expectedHash(size, length), `${length} values`));
  }
});

withMpi("broadcasts reach all, and several calls may be under way at once", async (launcher) => {
  const { words } = await run<unknown[]>(launcher, 3, "broadcasts");
  const all = [0, 1, 2].map((rank) => ({ rank, text: "é".repeat(rank) }));
  for (const { result } of words) assert.deepEqual(result, [true, all]);
  const overlapping = await run<{ right: boolean; turns: boolean; large: boolean; small: number[]; done: number[] }>(
    launcher,
    2,
    "overlap",
  );
  assert.equal(overlapping.words.length, 2, overlapping.said);
  for (const { result: { done, ...result } } of overlapping.words) {
    assert.deepEqual(result, { right: true, turns: true, large: true, small: [0, 0, 0, 0, 0] });
    assert.equal(done.length, 5);
  }
});

withMpi("two processes of two Workers each sum what four ranks sum", async (launcher) => {
  const { words, said } = await run<number[]>(launcher, 2, "wholeNumbers", 2);
  assert.equal(words.length, 4, said);
  for (const { result, size } of words) {
    assert.equal(size, 4);
    assert.deepEqual(result, [0 + 1 + 2 + 3]);
  }
  const { words: halves } = await run<number[]>(launcher, 2, "bits", 2);
  for (const { result } of halves) assert.deepEqual(result, halves[0].result);
});

withMpi("a rank that waits gives signs of life and leaves the processor alone", async (launcher) => {
  const { words } = await run<number>(launcher, 2, "late");
  assert.ok(words[0].waits >= 5, `${words[0].waits} signs of life in 1.5 s`);
  assert.ok(words[0].result < 0.75, `${words[0].result} s of processor time for 1.5 s of waiting`);
});

withMpi("a rank that is killed, or gives up, ends the job with a non-zero exit", async (launcher) => {
  const killed = await run(launcher, 2, "killed");
  assert.notEqual(killed.code, 0);
  assert.match(killed.said, /signal 9|SIGKILL|Killed/);
  const aborted = await run(launcher, 2, "aborted");
  assert.notEqual(aborted.code, 0);
  assert.match(aborted.said, /Cannot go on: rank 1's disk is full/);
});

const TRAINING = [
  ...["--context", "32", "--n-layer", "1", "--n-head", "2", "--n-embd", "32", "--dropout", "0.1", "--tune", "off"],
  ...["--micro-batch", "2", "--batch-tokens", "256", "--learning-rate", "0.01", "--steps", "6"],
  ...[
    "--eval-every",
    "3",
    "--eval-batches",
    "2",
    "--sample-every",
    "0",
    "--sample-tokens",
    "1",
    "--checkpoint-every",
    "3",
  ],
];

/** A folder with data, and the bits that a run of two Workers ends with. */
async function withThreads(
  body: (root: string, flags: readonly string[], bits: string) => Promise<void>,
): Promise<void> {
  const root = await Deno.makeTempDir();
  try {
    await makeData(join(root, "data"), { context: 32, repeat: 8 });
    const flags = [...TRAINING, "--data", join(root, "data")];
    const args = [...TASK, ...flags, "--ranks", "2", "--out", join(root, "threads")];
    assert.equal((await new Deno.Command(Deno.execPath(), { args, cwd: ROOT }).output()).code, 0);
    await body(root, flags, await bits(join(root, "threads"), 6));
  } finally {
    await Deno.remove(root, { recursive: true });
  }
}

withMpi(
  "whole runs of two processes give the bits of two Workers",
  (launcher) =>
    withThreads(async (root, flags, expected) => {
      const mpi = [...TASK, ...flags, "--communicator", "mpi", "--out", join(root, "mpi")];
      const { code, said } = await launch(launcher, 2, mpi);
      assert.equal(code, 0, said);
      assert.equal(await bits(join(root, "mpi"), 6), expected);
      assert.equal(said.split("updates 1 to 6").length, 2, said); // only rank 0 speaks
      const wrong = await launch(launcher, 2, [...mpi, "--data", join(root, "nothing")]);
      assert.notEqual(wrong.code, 0);
      assert.match(wrong.said, /error: .*nothing/);
    }),
);

const [OPEN_MPI] = LAUNCHERS;
const hosts = isInstalled(OPEN_MPI) && await canMakeHosts();
Deno.test({
  name: `a run over two hosts gives the bits of two Workers${
    hosts ? "" : " (ignored: no Open MPI or network namespaces)"
  }`,
  ignore: !hosts,
  fn: () =>
    withThreads(async (root, flags, expected) => {
      await using hosts = await makeHosts();
      const { addresses: [first, second], network, agent } = hosts;
      const over = [
        "plm_rsh_agent",
        agent,
        "btl",
        "tcp,self",
        "btl_tcp_if_include",
        network,
        "oob_tcp_if_include",
        network,
      ];
      const parameters = over.flatMap((word, i) => i % 2 === 0 ? ["--mca", word] : [word]);
      const program = [Deno.execPath(), ...TASK, ...flags, "--communicator", "mpi", "--out", join(root, "hosts")];
      const mpirun = [OPEN_MPI.command, ...OPEN_MPI.args, "--host", `${first}:1,${second}:1`, "-n", "2", ...parameters];
      const { code, stdout, stderr } = await new Deno.Command(agent, {
        args: [first, "exec", ...mpirun, ...program],
        cwd: ROOT,
        env: { NO_COLOR: "1", ...OPEN_MPI.env },
        stdin: "null",
      }).output();
      const said = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes)).join("");
      assert.equal(code, 0, said);
      assert.equal(await bits(join(root, "hosts"), 6), expected);
    }),
});

Deno.test("without an MPI library the packages that have one are named", async () => {
  const { code, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [...TASK, "--communicator", "mpi", "--steps", "1", "--tokenizer", "bytes"],
    cwd: ROOT,
    env: { MPI_LIB: "/nowhere/libmpi.so", NO_COLOR: "1" },
  }).output();
  const error = new TextDecoder().decode(stderr);
  assert.notEqual(code, 0);
  assert.match(error, /^error: .*\/nowhere\/libmpi\.so/m);
  assert.doesNotMatch(error, / {4}at /);
});

Deno.test("processes of one machine share its adapters out", () => {
  assert.deepEqual(adaptersOf(["a", "b", "c", "d"], 0, 1), ["a", "b", "c", "d"]);
  assert.deepEqual(adaptersOf(["a", "b", "c", "d"], 1, 2), ["b", "d"]);
  assert.deepEqual(adaptersOf(["a", "b"], 3, 4), ["b"]);
  const openMpi: Record<string, string> = {
    OMPI_COMM_WORLD_LOCAL_RANK: "1",
    OMPI_COMM_WORLD_LOCAL_SIZE: "2",
    OMPI_COMM_WORLD_RANK: "5",
  };
  assert.deepEqual(placeHere((name) => openMpi[name]), [1, 2, 5]);
  assert.deepEqual(placeHere(() => undefined), [0, 1, 0]);
});
