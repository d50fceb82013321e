/**
 * A contender in a process of its own. It prints one JSON object a line: `{ ready: {…} }` when it has warmed up, then for
 * each line it reads `{ ms }`. Whatever else it prints is passed over. It knows no peer.
 */
import { TextLineStream } from "../model/lines.ts";
import type { Contender } from "./harness.ts";

export interface ChildOptions {
  readonly name: string;
  readonly command: string;
  readonly args: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  /** The adapter it must run on; it says on which it did. */
  readonly adapter?: string;
}

interface Ready {
  readonly about?: string;
  readonly adapter?: string;
}

/** Seconds until it must be ready, and that one repeat may take. */
const LIMIT_SECONDS = 300;

/** Starts the process and waits until it is ready. Throws an Error with its last words where it never is. */
export async function openChild({ name, command, args, env, adapter }: ChildOptions): Promise<Contender> {
  const process = new Deno.Command(command, {
    args: [...args],
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
    env: { NO_COLOR: "1", ...env },
  }).spawn();
  const words = lastWords(process.stderr);
  const lines = process.stdout.pipeThrough(new TextDecoderStream()).pipeThrough(new TextLineStream()).getReader();
  const requests = process.stdin.getWriter();
  const close = async () => {
    try {
      process.kill("SIGKILL");
    } catch {
      // It has ended already.
    }
    await Promise.allSettled([process.status, requests.abort(), lines.cancel()]);
  };
  const answer = async (key: string): Promise<unknown> => {
    while (true) {
      const { value, done } = await withLimit(lines.read(), name);
      if (done) throw new Error(await words || `ended with code ${(await process.status).code}`);
      const message = parse(value);
      if (message !== null && key in message) return message[key];
    }
  };
  let ready: Ready;
  try {
    ready = await answer("ready") as Ready;
    if (adapter !== undefined && ready.adapter !== undefined && ready.adapter !== adapter) {
      throw new Error(`it ran on ${ready.adapter}, not on ${adapter}`);
    }
  } catch (error) {
    await close();
    throw error;
  }
  return {
    name,
    about: ready.about,
    async run() {
      await requests.write(new TextEncoder().encode("run\n"));
      return await answer("ms") as number;
    },
    [Symbol.asyncDispose]: close,
  };
}

function parse(line: string): Record<string, unknown> | null {
  try {
    const value = JSON.parse(line);
    return typeof value === "object" ? value : null;
  } catch {
    return null;
  }
}

async function withLimit<T>(promise: Promise<T>, name: string): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${name} said nothing for ${LIMIT_SECONDS} s`)), LIMIT_SECONDS * 1000);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** The first line that tells of an error, else the last one; empty where there is none. */
async function lastWords(stream: ReadableStream<Uint8Array<ArrayBuffer>>): Promise<string> {
  let last = "";
  let error = "";
  for await (const line of stream.pipeThrough(new TextDecoderStream()).pipeThrough(new TextLineStream())) {
    if (line.trim() !== "") last = line.trim();
    if (error === "" && /error/i.test(line) && !line.includes("XDG_RUNTIME_DIR")) error = line.trim();
  }
  return error || last;
}
