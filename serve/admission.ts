/** How many texts may be under way for a model: those that run and a queue, beyond which requests are told to come back. It knows no engine. */
import { RequestError } from "./errors.ts";

/** Texts under way, by model. */
export class Admission {
  readonly #underWay = new Map<string, number>();
  /** Seconds that texts took lately. */
  #seconds = 1;

  /** @param queue texts that may wait for each model. */
  constructor(readonly queue: number) {}

  /** Texts under way for a model. */
  count(model: string): number {
    return this.#underWay.get(model) ?? 0;
  }

  /**
   * Lets a request's texts in until what is returned is disposed. Where nothing is under way, any number is let in.
   *
   * @param capacity texts that the model's engine runs at once.
   * @throws RequestError 429 with `Retry-After` where the queue is full.
   */
  enter(model: string, capacity: number, texts: number): Disposable {
    const before = this.count(model);
    if (before > 0 && before + texts > capacity + this.queue) {
      throw new RequestError(
        429,
        `Try again later: ${before} texts are under way for '${model}', and ${
          capacity + this.queue
        } are taken on at once`,
        null,
        "queue_full",
        { "Retry-After": String(Math.min(60, Math.max(1, Math.ceil(this.#seconds)))) },
      );
    }
    this.#underWay.set(model, before + texts);
    const start = performance.now();
    let inside = true;
    return {
      [Symbol.dispose]: () => {
        if (!inside) return;
        inside = false;
        this.#underWay.set(model, this.count(model) - texts);
        this.#seconds += ((performance.now() - start) / 1000 - this.#seconds) / 8;
      },
    };
  }
}
