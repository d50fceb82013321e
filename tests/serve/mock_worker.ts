/** A Worker with a mock engine instead of a GPU; the folder it is asked to open says how the engine behaves. */
import { UserError } from "../../model/errors.ts";
import { hostEngine, type WorkerPort } from "../../serve/engine_host.ts";
import { mockEngine } from "./mock_engine.ts";

hostEngine(self as unknown as WorkerPort, (folder) => {
  if (folder === "missing") throw new UserError("Cannot read missing: there is none", 4);
  if (folder === "failing") {
    return Promise.resolve(mockEngine({ fail: (index) => index === 3 ? new Error("device lost") : undefined }));
  }
  if (folder === "picky") return Promise.resolve(mockEngine({ fail: () => new RangeError("too long") }));
  if (folder === "exploding") {
    return Promise.resolve(mockEngine({
      fail: (index) => {
        if (index === 2) setTimeout(() => Promise.reject(new Error("driver gone")), 1);
        return undefined;
      },
      delay: 20,
    }));
  }
  const engine = mockEngine({ delay: Number(folder), contextLength: 5000 });
  const score = engine.score.bind(engine);
  // A way to look inside from the other side: the score of token 0 is how many tokens each call has yielded.
  engine.score = (tokens, top) =>
    tokens[0] !== 0 ? score(tokens, top) : Promise.resolve(
      engine.calls.map((call) => call.yielded).map((token) => ({ token, logprob: 0, top: [] })),
    );
  return Promise.resolve(engine);
});
