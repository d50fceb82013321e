/** What is asked of an engine, with what has come of it so far. It knows neither who schedules it nor a GPU. */
import { type Generated, generated, type Sampling, type TokenLogprob } from "../model/generate.ts";
import { History } from "../model/sampling.ts";
import { Inbox } from "./inbox.ts";
import { Sequence } from "./sequence.ts";

/** A text to go on with. Its reader takes tokens from the inbox; an Error is the last. */
export class Generation extends Sequence {
  readonly kind = "generation";
  readonly history: History;
  readonly inbox = new Inbox<Generated | Error | null>();
  /** Tokens to choose at most. */
  readonly most: number;
  /** Tokens of the next readback, where it runs alone. */
  lookahead = 1;

  constructor(prompt: Uint32Array, readonly sampling: Sampling, contextLength: number) {
    super(prompt);
    this.history = new History(prompt, sampling);
    this.most = Math.min(sampling.maxTokens, contextLength - prompt.length + 1);
  }

  /** Tokens chosen so far. */
  get made(): number {
    return this.tokens.length - this.promptLength;
  }

  /** Tokens that are ever computed: the last one chosen is not. */
  get longest(): number {
    return this.promptLength + this.most - 1;
  }

  /** Hands on a token chosen. Returns whether it was the last one. */
  take(choice: TokenLogprob): boolean {
    const made = this.made + 1;
    const next = generated(choice, this.sampling, made, { full: made === this.most });
    this.push(next.token);
    this.history.push(next.token);
    this.inbox.push(next);
    return next.finish !== undefined;
  }

  /** Ends it early: by an error, or without a word. */
  end(error: Error | null): void {
    this.inbox.push(error);
  }
}

/** A text whose tokens' log-probabilities are wanted, each given those before it. */
export class Scoring extends Sequence {
  readonly kind = "scoring";
  readonly #answer = Promise.withResolvers<readonly TokenLogprob[]>();
  readonly #scores: TokenLogprob[] = [];

  /** @param text two tokens or more. */
  constructor(readonly text: Uint32Array, readonly top: number) {
    super(text.subarray(0, -1), { everyRow: true });
  }

  get longest(): number {
    return this.tokens.length;
  }

  /** Scores of all tokens but the first. */
  get answer(): Promise<readonly TokenLogprob[]> {
    return this.#answer.promise;
  }

  /** Takes the scores of the positions computed from `from` on. Returns whether they were the last ones. */
  take(from: number, scores: readonly TokenLogprob[]): boolean {
    // Computed again after a preemption, they are the same.
    this.#scores.splice(from, scores.length, ...scores);
    if (from + scores.length < this.tokens.length) return false;
    this.#answer.resolve(this.#scores);
    return true;
  }

  end(error: Error): void {
    this.#answer.reject(error);
  }
}

export type Request = Generation | Scoring;
