/** What passes between a Worker with an engine and the thread that asks it: messages and errors as plain data. Knows neither end. */
import type { AdapterChoice } from "../kernels/gpu/adapters.ts";
import { UserError } from "../model/errors.ts";
import type { WeightFormat } from "../model/scope.ts";
import type { Engine, EngineStats, Generated, Sampling, TokenLogprob } from "../model/generate.ts";
import type { EngineOptions } from "./engine.ts";

export type Scores = readonly (TokenLogprob | null)[];

/** How a Worker opens a model. */
export interface OpenEngineOptions {
  /** Format of the weights in memory. Default: f32. */
  readonly dtype?: WeightFormat;
  readonly engine?: EngineOptions;
  /** The adapter to open; whichever WebGPU gives where missing. */
  readonly adapter?: AdapterChoice;
  /** Compiles what usual requests need, so that the first request is as fast as others. Default: no. */
  readonly warm?: boolean;
}

export type ToWorker =
  | { readonly type: "open"; readonly folder: string; readonly options: OpenEngineOptions }
  | { readonly type: "generate"; readonly id: number; readonly prompt: Uint32Array; readonly sampling: Sampling }
  | { readonly type: "score"; readonly id: number; readonly tokens: Uint32Array; readonly top: number }
  | { readonly type: "abort"; readonly id: number }
  | { readonly type: "close" };

/** Without an id a failure is that of opening the folder. */
export type FromWorker =
  | { readonly type: "opened"; readonly facts: EngineFacts }
  | { readonly type: "stats"; readonly stats: EngineStats }
  | { readonly type: "token"; readonly id: number; readonly token: Generated }
  | { readonly type: "scores"; readonly id: number; readonly scores: Scores }
  | { readonly type: "end"; readonly id: number }
  | { readonly type: "failed"; readonly id?: number; readonly failure: Failure }
  | { readonly type: "closed" };

/** What of an engine doesn't change. */
export type EngineFacts = Pick<Engine, "contextLength" | "vocabSize" | "capacity">;

/** An error as data: structured cloning would lose its class. */
export interface Failure {
  readonly name: string;
  readonly message: string;
  readonly exitCode?: number;
}

/** What was thrown, as data that can cross. */
export function toFailure(error: unknown): Failure {
  if (!(error instanceof Error)) return { name: "Error", message: String(error) };
  return {
    name: error.name,
    message: error.message,
    exitCode: error instanceof UserError ? error.exitCode : undefined,
  };
}

/** UserError and RangeError come back as what they were, all others as Error. */
export function fromFailure({ name, message, exitCode }: Failure): Error {
  if (exitCode !== undefined) return new UserError(message, exitCode);
  return name === "RangeError" ? new RangeError(message) : new Error(message);
}
