/** An engine without a model: it says what it is told to, as slowly as it is told to, and remembers what it was asked. Knows no text. */
import { setTimeout as delay } from "node:timers/promises";
import type { Engine, Generated, Sampling, TokenLogprob } from "../../model/generate.ts";

export interface MockOptions {
  /** The tokens of a generation; it ends at a stop token, at maxTokens or where the context is full. */
  readonly say?: (prompt: Uint32Array, sampling: Sampling) => Iterable<number>;
  /** Milliseconds before each token; 0 gives the event loop no turn. */
  readonly delay?: number;
  readonly contextLength?: number;
  readonly vocabSize?: number;
  /** Throws before this token of each generation. */
  readonly fail?: (index: number) => Error | undefined;
}

export interface MockCall {
  readonly prompt: number[];
  readonly sampling: Sampling;
  yielded: number;
  ended: boolean;
  aborted: boolean;
}

export interface MockEngine extends Engine {
  readonly calls: MockCall[];
  readonly disposed: boolean;
}

/** A log-probability that depends on token and position only, and the next larger token ids as alternatives, each a bit less likely. */
export function mockLogprob(token: number, position: number, top: number, vocabSize: number): TokenLogprob {
  const logprob = -((token * 31 + position * 7) % 64) / 8;
  const alternatives = Array.from(
    { length: top },
    (_, i) => ({ token: (token + i + 1) % vocabSize, logprob: logprob - (i + 1) / 4 }),
  );
  return { token, logprob, top: alternatives };
}

/** By default the engine counts up from the prompt's last token, within the vocabulary. */
export function mockEngine(options: MockOptions = {}): MockEngine {
  const { contextLength = 256, vocabSize = 257 } = options;
  const calls: MockCall[] = [];
  let disposed = false;
  const say = options.say ?? function* (prompt: Uint32Array) {
    for (let token = prompt[prompt.length - 1];;) yield token = (token + 1) % vocabSize;
  };
  return {
    calls,
    contextLength,
    vocabSize,
    get disposed() {
      return disposed;
    },
    async *generate(prompt, sampling, signal): AsyncGenerator<Generated> {
      const call = { prompt: [...prompt], sampling, yielded: 0, ended: false, aborted: false };
      calls.push(call);
      try {
        for (const token of say(prompt, sampling)) {
          if (options.delay) await delay(options.delay);
          if (signal?.aborted) return;
          const failure = options.fail?.(call.yielded);
          if (failure) throw failure;
          const full = ++call.yielded === sampling.maxTokens || prompt.length + call.yielded === contextLength;
          const finish = sampling.stopTokens.includes(token) ? "stop" : full ? "length" : undefined;
          const position = prompt.length + call.yielded - 1;
          yield { ...mockLogprob(token, position, sampling.logprobs, vocabSize), ...(finish && { finish }) };
          if (finish) break;
        }
        call.ended = true;
      } finally {
        call.aborted = signal?.aborted ?? false;
      }
    },
    score(tokens, top) {
      return Promise.resolve(Array.from(tokens, (token, i) => i === 0 ? null : mockLogprob(token, i, top, vocabSize)));
    },
    [Symbol.asyncDispose]() {
      disposed = true;
      return Promise.resolve();
    },
  };
}
