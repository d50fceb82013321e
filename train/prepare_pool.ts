/** Workers that turn pieces into tokens, several at once, with results in order. It knows nothing of what is in them. */
import { UserError } from "../model/errors.ts";
import type { Answer, Job, TokenizedPiece, WorkerSetup } from "./prepare_worker.ts";

interface Waiting {
  readonly job: Job;
  readonly resolve: (piece: TokenizedPiece) => void;
  readonly reject: (error: unknown) => void;
}

export class Pool implements Disposable {
  readonly #idle: Worker[] = [];
  readonly #workers: Worker[] = [];
  readonly #waiting: Waiting[] = [];

  constructor(readonly size: number, setup: WorkerSetup) {
    for (let index = 0; index < size; index++) {
      const worker = new Worker(new URL("./prepare_worker.ts", import.meta.url), { type: "module" });
      worker.postMessage(setup);
      this.#workers.push(worker);
      this.#idle.push(worker);
    }
  }

  /**
   * Results of the jobs in their order; few more are under way than there are workers, so that memory stays bounded.
   *
   * @throws UserError where one fails, after all results before it.
   */
  async *run(jobs: Iterable<Job>): AsyncGenerator<TokenizedPiece> {
    const ahead: Promise<TokenizedPiece>[] = [];
    for (const job of jobs) {
      const result = this.#start(job);
      result.catch(() => {}); // told when its turn comes
      ahead.push(result);
      if (ahead.length > 2 * this.size) yield await ahead.shift()!;
    }
    while (ahead.length > 0) yield await ahead.shift()!;
  }

  [Symbol.dispose](): void {
    for (const worker of this.#workers) worker.terminate();
  }

  #start(job: Job): Promise<TokenizedPiece> {
    const { promise, resolve, reject } = Promise.withResolvers<TokenizedPiece>();
    this.#waiting.push({ job, resolve, reject });
    this.#next();
    return promise;
  }

  #next(): void {
    if (this.#idle.length === 0 || this.#waiting.length === 0) return;
    const worker = this.#idle.pop()!;
    const { job, resolve, reject } = this.#waiting.shift()!;
    worker.onmessage = ({ data }: MessageEvent<Answer>) => {
      this.#idle.push(worker);
      if ("piece" in data) resolve(data.piece);
      else reject(new UserError(data.failed, data.exitCode));
      this.#next();
    };
    worker.onerror = (event) => {
      event.preventDefault();
      reject(new UserError(`Cannot prepare ${job.source.path}: ${event.message.split("\n")[0]}`));
    };
    worker.postMessage(job);
  }
}
