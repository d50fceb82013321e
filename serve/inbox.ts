/** Messages that wait to be read, in order. It knows neither who sends nor who reads. */
export class Inbox<T> {
  readonly #messages: T[] = [];
  #wake = () => {};

  push(message: T): void {
    this.#messages.push(message);
    this.#wake();
  }

  /** The first message not read yet; waits for it. One reader at a time. */
  async next(): Promise<T> {
    if (this.#messages.length === 0) await new Promise<void>((resolve) => this.#wake = resolve);
    return this.#messages.shift()!;
  }
}
