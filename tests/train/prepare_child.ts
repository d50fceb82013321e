/** A process that prepares all, a part, or merges parts, to be killed. */
import { UserError } from "../../model/errors.ts";
import { prepare, type PrepareOptions } from "../../train/prepare.ts";
import { mergeParts } from "../../train/prepare_merge.ts";
import { preparePart } from "../../train/prepare_part.ts";
import type { Part } from "../../train/prepare_pieces.ts";

try {
  const [options, what] = Deno.args.map((text) => JSON.parse(text)) as [PrepareOptions, (Part | "merge")?];
  if (what === undefined) await prepare(options);
  else if (what === "merge") await mergeParts(options);
  else await preparePart(options, what);
} catch (error) {
  if (!(error instanceof UserError)) throw error;
  console.log(error.message);
  Deno.exit(error.exitCode);
}
