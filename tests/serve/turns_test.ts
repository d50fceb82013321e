/** Messages reach a thread that works in steps. */
import assert from "node:assert/strict";

Deno.test("a message reaches a busy thread within two of its steps", async () => {
  const worker = new Worker(new URL("./busy_worker.ts", import.meta.url), { type: "module" });
  try {
    const answer = () => new Promise<number>((resolve) => worker.onmessage = ({ data }) => resolve(data));
    const started = answer();
    await started;
    for (let i = 0; i < 4; i++) {
      await new Promise((resolve) => setTimeout(resolve, 130 + 37 * i)); // where it comes within a step is chance
      const steps = answer();
      worker.postMessage(performance.timeOrigin + performance.now());
      assert.ok(await steps <= 2, "steps begun since the message was sent");
    }
  } finally {
    worker.terminate();
  }
});
