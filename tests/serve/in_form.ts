/** Whether a response to hostile input is one that the API gives. */
import assert from "node:assert/strict";
import { readEvents } from "./serving.ts";

/** Never a 5xx: a refusal in form, events without an error that end as they should, or a whole answer, which is returned. */
// deno-lint-ignore no-explicit-any -- answers of all routes
export async function inForm(response: Response): Promise<any> {
  const answer = await response.text();
  assert.ok(response.status < 500, answer);
  if (response.headers.get("content-type")?.startsWith("text/event-stream")) {
    const events = readEvents(answer);
    assert.equal(events.pop(), "[DONE]");
    for (const event of events) assert.ok(!("error" in JSON.parse(event)), event);
    return undefined;
  }
  const body = JSON.parse(answer);
  if (response.status === 200) return body;
  assert.ok(typeof body.error.message === "string" && body.error.type === "invalid_request_error", answer);
}
