/** Whether bodies have the forms of OpenAI's schemas, which stand beside this file. */
import assert from "node:assert/strict";
import { Ajv2020 } from "ajv/dist/2020.js";

const schemas = JSON.parse(await Deno.readTextFile(new URL("./responses.schema.json", import.meta.url)));
const ajv = new Ajv2020();
ajv.addSchema(schemas, "responses");

/** Checks a body against one of the schemas. */
export function fits(name: string, body: unknown): void {
  const validate = ajv.getSchema(`responses#/$defs/${name}`)!;
  assert.ok(validate(body), `${name}: ${ajv.errorsText(validate.errors)} in ${JSON.stringify(body)}`);
}
