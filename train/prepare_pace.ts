/** When to write the next checkpoint: every so often, and seldom enough that it costs little. It doesn't know what is written. */

/** Time that checkpoints may take, as a part of all. */
const SHARE = 0.05;

export class CheckpointPace {
  #next = 0;

  /** @param seconds between two checkpoints; 0 writes one each time. */
  constructor(readonly seconds: number, readonly write: () => Promise<void>) {}

  /** Writes one where it is due. */
  async maybe(): Promise<void> {
    const start = performance.now();
    if (start < this.#next) return;
    await this.write();
    const end = performance.now();
    this.#next = this.seconds === 0 ? 0 : end + Math.max(this.seconds * 1000, (end - start) / SHARE);
  }
}
