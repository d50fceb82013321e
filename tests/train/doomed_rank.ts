/** The process of a rank whose device is destroyed while an update is computed: arguments as `train/main.ts rank` has them. */
import { openRankLearner } from "../../train/gpu_learner.ts";
import { readJob } from "../../train/job.ts";
import { openPosixRegion } from "../../train/posix_memory.ts";
import { runSupervisedRank } from "../../train/rank.ts";
import { regionBytes } from "../../train/shared_memory.ts";
import { ignoreStop } from "../../train/stop.ts";

const LAST_UPDATE = 9;

const [folder, number] = Deno.args;
const job = await readJob(folder);
using region = openPosixRegion(job.sharedMemory!, regionBytes(job.adapters.length));
const code = await runSupervisedRank({
  job,
  folder,
  rank: Number(number),
  region,
  stop: ignoreStop(),
  onOrphaned: () => Deno.exit(1),
  open: (place) => async (options) => {
    const device = await place.openDevice();
    const learner = await openRankLearner({ ...place, openDevice: () => Promise.resolve(device) })(options);
    return {
      ...learner,
      async accumulate(work) {
        const working = learner.accumulate(work);
        if (work.update === LAST_UPDATE) device.gpu.destroy();
        await working;
      },
    };
  },
});
Deno.exit(code);
