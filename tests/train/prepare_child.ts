/** A process that prepares, to be killed. */
import { prepare } from "../../train/prepare.ts";
import { UserError } from "../../model/errors.ts";

try {
  await prepare(JSON.parse(Deno.args[0]));
} catch (error) {
  if (!(error instanceof UserError)) throw error;
  console.log(error.message);
  Deno.exit(error.exitCode);
}
