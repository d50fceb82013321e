/** Models on a port: listens at once, answers when they are loaded, closes cleanly. Knows no routes and no flags. */
import { shellWord } from "../model/arguments.ts";
import { UserError } from "../model/errors.ts";
import { type AppOptions, createApp } from "./app.ts";
import { createLoadingApp } from "./loading.ts";
import type { Models } from "./models.ts";
import { within } from "./within.ts";

export interface ServerOptions extends AppOptions {
  readonly hostname: string;
  /** 0 takes a free port. */
  readonly port: number;
}

/** Disposed of, it ends what is under way; drained before, there is little of it. */
export interface RunningServer extends AsyncDisposable {
  /** Takes no more requests, and waits for those under way, so many seconds at most. */
  drain(seconds: number): Promise<void>;
  /** `http://host:port`, as a client on this machine reaches it. */
  readonly url: string;
  readonly models: Models;
}

/** How long requests under way may take to end when the server closes, in milliseconds. */
const closingTime = 3000;

/**
 * Starts a server; resolves when it answers completions. Until then every request but for the page gets 503.
 * Throws UserError where the port can't be had, or what opening a model throws.
 */
export async function startServer(options: ServerOptions): Promise<RunningServer> {
  let answer: Deno.ServeHandler<Deno.NetAddr> = createLoadingApp().fetch;
  await using resources = new AsyncDisposableStack();
  const server = resources.adopt(listen(options, (request, info) => answer(request, info)), shutDown);
  const app = resources.use(await createApp(options));
  answer = app.fetch;
  const owned = resources.move();
  return {
    url: urlOf(server.addr),
    models: app.models,
    drain: app.drain,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

/** Takes a port. @throws UserError where it can't be had. */
export function listen(
  { hostname, port }: Pick<ServerOptions, "hostname" | "port">,
  answer: Deno.ServeHandler<Deno.NetAddr>,
): Deno.HttpServer<Deno.NetAddr> {
  try {
    return Deno.serve({ hostname, port, onListen: () => {} }, answer);
  } catch (error) {
    if (error instanceof Deno.errors.AddrInUse) {
      throw new UserError(`Choose another --port: ${port} is in use on ${hostname}`);
    }
    const denied = error instanceof Deno.errors.PermissionDenied;
    throw new UserError(
      `Choose another --host or --port: can't listen on ${hostname}:${port} (${(error as Error).message})`,
      denied ? 4 : 1,
    );
  }
}

export async function shutDown(server: Deno.HttpServer): Promise<void> {
  await within(server.shutdown(), closingTime);
}

/** Where a client on this machine reaches a server. */
export function urlOf({ hostname, port }: Deno.NetAddr): string {
  const local = { "0.0.0.0": "127.0.0.1", "::": "::1" }[hostname] ?? hostname;
  return `http://${local.includes(":") ? `[${local}]` : local}:${port}`;
}

/** A command line that asks the server for a streamed completion, to be pasted into a shell. */
export function curlCommand(url: string, model: string, withKey = false): string {
  const body = JSON.stringify({
    model,
    prompt: "The people",
    max_tokens: 64,
    temperature: 0.7,
    top_p: 0.9,
    stream: true,
  });
  const key = withKey ? ` -H "authorization: Bearer $WGPT_API_KEY"` : "";
  return `curl -N ${url}/v1/completions${key} -H 'content-type: application/json' -d ${shellWord(body)}`;
}
