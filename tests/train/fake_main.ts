/** A training process with the fake learner, to be killed and interrupted: flags as `deno task train` has them. */
import { UserError } from "../../model/errors.ts";
import { createConsole } from "../../train/console.ts";
import { train } from "../../train/loop.ts";
import { listenForStop } from "../../train/stop.ts";
import { fakeLearner } from "./fake_learner.ts";
import { settings } from "./runs.ts";

const SLOW_MS = 8;

const console = createConsole({ terminal: false, every: 0 });
using stop = listenForStop((line) => console.line(line), () => Deno.exit(130));
const openLearner = fakeLearner({
  onMicrostep: () => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, SLOW_MS),
});
try {
  await train(await settings(...Deno.args), { openLearner, console, stop });
} catch (error) {
  if (!(error instanceof UserError)) throw error;
  console.line(`error: ${error.message}`);
  Deno.exit(error.exitCode);
}
