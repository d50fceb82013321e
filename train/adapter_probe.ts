/** What adapters grant when they are opened, one after the other. It chooses none and keeps none open. */
import type { FoundAdapter } from "../kernels/gpu/adapters.ts";

/** What an adapter grants when it is opened. */
export interface Granted {
  readonly features: readonly string[];
  /** Threads that run in step; 0 where the adapter has no subgroups. */
  readonly subgroupSize: number;
  readonly limits: Readonly<Record<string, number>>;
}

/** What a Worker answers. */
export type Answer = Granted | { readonly error: string };

/**
 * Opens each adapter in a Worker of its own, as ranks do. An Error is why one can't be opened. The Workers stay until the
 * process ends: a driver's thread that is taken down while the process ends crashes it (SwiftShader, one time in ten).
 */
export async function probeAdapters(adapters: readonly FoundAdapter[]): Promise<(Granted | Error)[]> {
  const results: (Granted | Error)[] = [];
  for (const adapter of adapters) { // one after the other: Workers share the environment
    results.push(adapter.unreachable === null ? await probe(adapter) : new Error(adapter.unreachable));
  }
  return results;
}

function probe(adapter: FoundAdapter): Promise<Granted | Error> {
  const worker = new Worker(new URL("./adapter_worker.ts", import.meta.url), { type: "module" });
  const { promise, resolve } = Promise.withResolvers<Granted | Error>();
  worker.onmessage = ({ data }: MessageEvent<Answer>) => resolve("error" in data ? new Error(data.error) : data);
  worker.onerror = (event) => {
    event.preventDefault();
    resolve(new Error(event.message));
  };
  worker.postMessage(adapter);
  return promise;
}
