/** Writes a checkpoint to the folder named in its argument again and again until it is killed; checkpoint_test.ts runs it. */

import { writeFolder } from "../../model/checkpoint.ts";
import { config, contentOf } from "./small_checkpoint.ts";

for (let offset = 0;; offset++) {
  await writeFolder(Deno.args[0], contentOf(config, offset));
  console.log("written", offset);
}
