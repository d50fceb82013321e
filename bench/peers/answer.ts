/** A peer's side of the conversation with the bench: says that it is ready, then runs once for each line it reads. */
import config from "./deno.json" with { type: "json" };
import { TextLineStream } from "../../model/lines.ts";

/** The adapter that WebGPU gives where asked for the fastest, as every library here asks. */
export async function adapterName(): Promise<string | undefined> {
  return (await navigator.gpu.requestAdapter({ powerPreference: "high-performance" }))?.info.description;
}

/** Answers until the bench ends the process: `run` gives milliseconds; `library` is what deno.json calls the peer. */
export async function answer(library: keyof typeof config.imports, run: () => Promise<number>, adapter?: string) {
  console.log(JSON.stringify({ ready: { about: config.imports[library], adapter } }));
  const lines = Deno.stdin.readable.pipeThrough(new TextDecoderStream()).pipeThrough(new TextLineStream());
  for await (const _ of lines) console.log(JSON.stringify({ ms: await run() }));
}
