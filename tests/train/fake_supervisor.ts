/** A supervisor of fake ranks, to be signalled and killed: arguments are what its two ranks are to do, and more flags. */
import { fileURLToPath } from "node:url";
import { createConsole } from "../../train/console.ts";
import { supervise } from "../../train/supervisor.ts";
import { settings } from "./runs.ts";

const FAKE = fileURLToPath(new URL("./fake_rank.ts", import.meta.url));
const [first, second, ...flags] = Deno.args;
const adapters = ["GPU A", "GPU B"].map((name) => {
  return { name, id: name, type: "discrete" as const, environment: {}, powerPreference: "high-performance" as const };
});
const code = await supervise(await settings("--isolation", "process", ...flags), adapters, {
  console: createConsole({ terminal: false }),
  start: (folder, rank) => {
    const args = ["run", "-q", "--allow-all", FAKE, folder, `${rank}`, rank === 0 ? first : second];
    return new Deno.Command(Deno.execPath(), { args, stdin: "null" }).spawn();
  },
});
Deno.exit(code);
