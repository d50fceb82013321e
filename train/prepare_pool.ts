/** Workers that turn pieces into tokens, several at once, with results in order. It knows nothing of what is in them. */
import { UserError } from "../model/errors.ts";
import type { Watch } from "./prepare_parquet.ts";
import { placeOf, refusal } from "./prepare_pieces.ts";
import type { Answer, Job, TokenizedPiece, WorkerSetup } from "./prepare_worker.ts";
import { tokenArray } from "./shards.ts";

type Timer = ReturnType<typeof setTimeout>;

interface Waiting {
  readonly job: Job;
  readonly resolve: (piece: TokenizedPiece) => void;
  readonly reject: (error: unknown) => void;
}

export class Pool implements Disposable {
  readonly #idle: Worker[] = [];
  readonly #workers = new Set<Worker>();
  readonly #waiting: Waiting[] = [];
  readonly #timers = new Set<Timer>();

  /** `decodeSeconds` is what a Worker gets for decoding before what it decodes counts as corrupt. */
  constructor(readonly size: number, readonly setup: WorkerSetup, readonly decodeSeconds: number) {
    for (let index = 0; index < size; index++) this.#idle.push(this.#newWorker());
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
    for (const timer of this.#timers) clearTimeout(timer);
    for (const worker of this.#workers) worker.terminate();
  }

  #newWorker(): Worker {
    const worker = new Worker(new URL("./prepare_worker.ts", import.meta.url), { type: "module" });
    worker.postMessage(this.setup);
    this.#workers.add(worker);
    return worker;
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
    const ended = (next: Worker, tell: () => void) => {
      this.#idle.push(next);
      tell();
      this.#next();
    };
    const watch = this.#watchdog(() => {
      worker.terminate();
      this.#workers.delete(worker);
      ended(this.#newWorker(), () => this.#hung(job, resolve, reject));
    });
    worker.onmessage = ({ data }: MessageEvent<Answer>) => {
      if ("decoding" in data) watch(data.decoding);
      else if ("piece" in data) ended(worker, () => resolve(data.piece));
      else ended(worker, () => reject(new UserError(data.failed, data.exitCode)));
    };
    worker.onerror = (event) => {
      event.preventDefault();
      watch(false);
      reject(new UserError(`Cannot prepare ${job.source.path}: ${event.message.split("\n")[0]}`));
    };
    worker.postMessage(job);
  }

  /** Calls `late` where decoding was said to begin and not, in time, to end. */
  #watchdog(late: () => void): Watch {
    let timer: Timer | undefined;
    return (decoding) => {
      clearTimeout(timer);
      if (timer !== undefined) this.#timers.delete(timer);
      if (!decoding) return;
      timer = setTimeout(late, this.decodeSeconds * 1000);
      this.#timers.add(timer);
    };
  }

  #hung({ source, piece }: Job, resolve: Waiting["resolve"], reject: Waiting["reject"]): void {
    const reason = `it is corrupt: decoding it takes more than ${this.decodeSeconds} s`;
    if (!this.setup.skipBad) return reject(refusal(source, piece, reason));
    resolve({
      tokens: tokenArray(this.setup.vocabSize, 0),
      lengths: new Uint32Array(0),
      textBytes: new Uint32Array(0),
      bad: [`${placeOf(source, piece)}: ${reason}`],
      badPiece: true,
    });
  }
}
