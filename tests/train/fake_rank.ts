/**
 * The process of a rank that trains nothing and does what it is told: arguments are the job's folder, its number or `-`, and
 * what to do. It beats as real ranks do.
 */
import { join } from "node:path";
import { UserError } from "../../model/errors.ts";
import { Abandoned } from "../../train/communicator.ts";
import { ABANDONED, FAULT, Heart, readJob, writeFailure } from "../../train/job.ts";

const [folder, number, orders] = Deno.args;
const job = await readJob(folder);
const rank = number === "-" ? 0 : Number(number);
const heart = new Heart(folder, rank, job);
const steps: Record<string, (detail: string) => Promise<void> | void> = {
  run: (run) => heart.beat({ run }),
  step: async (step) => {
    await new Promise((resolve) => setTimeout(resolve, 70));
    heart.beat({ step: Number(step) });
  },
  exit: (code) => Deno.exit(Number(code)),
  die: () => Deno.kill(Deno.pid, "SIGKILL"),
  freeze: () => Deno.kill(Deno.pid, "SIGSTOP"),
  fault: (message) => fail(new Error(message), FAULT),
  user: (code) => fail(new UserError("the disk is full", Number(code)), Number(code)),
  abandoned: () => fail(new Abandoned(), ABANDONED),
  /** Beats until it is asked to end, or its supervisor is gone. Rank 0 then tells the others to end. */
  wait: async () => {
    let asked = false;
    Deno.addSignalListener("SIGTERM", () => asked = rank === 0);
    Deno.addSignalListener("SIGINT", () => {});
    await beatUntil(() => asked || told());
    if (rank === 0) Deno.writeTextFileSync(end, "");
    Deno.exit(0);
  },
  /** Beats on when it is asked to end, or dies of that. */
  stubborn: async (dies) => {
    Deno.addSignalListener("SIGTERM", () => dies && Deno.kill(Deno.pid, "SIGKILL"));
    Deno.addSignalListener("SIGINT", () => {});
    await beatUntil(() => false);
  },
};

const end = join(folder, "end");

function told(): boolean {
  try {
    return Deno.statSync(end).isFile;
  } catch {
    return false;
  }
}

async function beatUntil(over: () => boolean): Promise<void> {
  while (!over()) {
    try {
      heart.beat();
    } catch {
      Deno.exit(ABANDONED);
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

function fail(error: unknown, code: number): never {
  writeFailure(folder, rank, error);
  Deno.exit(code);
}

heart.beat();
for (const order of orders.split(";")) {
  const [name, detail = ""] = order.split("=");
  await steps[name](detail);
}
