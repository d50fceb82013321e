/**
 * `deno task train` with a fault in the life of a first rank: `device`, rank 1 loses its device in mid-step; `disk`, the disk
 * refuses files beyond a size to rank 0; `none`. More arguments are flags.
 */
import { fileURLToPath } from "node:url";
import { chooseAdapters, listAdapters } from "../../kernels/gpu/adapters.ts";
import { createConsole } from "../../train/console.ts";
import type { StartRanks } from "../../train/job_watch.ts";
import { settled } from "../../train/run_folder.ts";
import { startRanks, supervise } from "../../train/supervisor.ts";
import { settings } from "./runs.ts";

const path = (name: string) => fileURLToPath(new URL(name, import.meta.url));
/** In blocks of 512 bytes: more than metrics, less than weights. */
const FILE_SIZE = 100;

const [fault, ...flags] = Deno.args;
let struck = false;
const start: StartRanks = (folder, rank) => {
  const deno = ["run", "-q", "--allow-all", "--config", path("../../deno.json")];
  if (fault === "device" && rank === 1 && !struck) {
    struck = true;
    return new Deno.Command(Deno.execPath(), {
      args: [...deno, path("./doomed_rank.ts"), folder, "1"],
      stdin: "null",
    }).spawn();
  }
  if (fault === "disk" && rank === 0) {
    // Ignored, the signal of a file that grows too large leaves the write with an error, as a full disk does.
    const limited = `trap '' XFSZ; ulimit -f ${FILE_SIZE}; exec "$@"`;
    const args = [Deno.execPath(), ...deno, path("../../train/main.ts"), "rank", folder, "0"];
    return new Deno.Command("sh", { args: ["-c", limited, "sh", ...args], stdin: "null" }).spawn();
  }
  return startRanks(folder, rank);
};
const asked = await settled(await settings(...flags));
const adapters = chooseAdapters(await listAdapters(), asked.config.adapters, asked.config.ranks);
Deno.exit(await supervise(asked, adapters, { console: createConsole({ every: 0 }), start }));
