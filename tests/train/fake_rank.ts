/**
 * The process of a rank that trains nothing and does what it is told: arguments are the job's folder, its number or `-`, and
 * what to do. It beats as real ranks do.
 */
import { join } from "node:path";
import { UserError } from "../../model/errors.ts";
import { Abandoned } from "../../train/communicator.ts";
import { ABANDONED, FAULT, Heart, readJob, writeFailure } from "../../train/job.ts";

const [folder, number, orders] = Deno.args;
const { supervisor } = await readJob(folder);
const rank = number === "-" ? 0 : Number(number);
const heart = new Heart(folder, rank, supervisor);
const steps: Record<string, (detail: string) => Promise<void> | void> = {
  run: (run) => heart.beat({ run }),
  step: async (step) => {
    await new Promise((resolve) => setTimeout(resolve, 220));
    heart.beat({ step: Number(step) });
  },
  exit: (code) => Deno.exit(Number(code)),
  die: () => Deno.kill(Deno.pid, "SIGKILL"),
  freeze: () => Deno.kill(Deno.pid, "SIGSTOP"),
  fault: (message) => fail(new Error(message), FAULT),
  user: (code) => fail(new UserError("the disk is full", Number(code)), Number(code)),
  abandoned: () => fail(new Abandoned(), ABANDONED),
  /** Beats until it is asked to end, and then says `stopped` and ends well; or until its supervisor is gone. */
  wait: async (file) => {
    let asked = false;
    Deno.addSignalListener("SIGTERM", () => asked = true);
    Deno.addSignalListener("SIGINT", () => {});
    while (!asked) {
      try {
        heart.beat();
      } catch {
        Deno.exit(ABANDONED);
      }
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    if (file !== "") await Deno.writeTextFile(join(file), "stopped");
    Deno.exit(0);
  },
};

function fail(error: unknown, code: number): never {
  writeFailure(folder, rank, error);
  Deno.exit(code);
}

heart.beat();
for (const order of orders.split(";")) {
  const [name, detail = ""] = order.split("=");
  await steps[name](detail);
}
