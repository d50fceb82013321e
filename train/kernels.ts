/**
 * Which kernels a run uses: tuned or looked up at its start, written in its folder, and the same when it goes on, so that
 * its numbers stay the same to the last bit. The speeds of ranks, which decide who adds what, are kept with them. It knows
 * no kernel and times nothing itself.
 */
import { join } from "node:path";
import { Choices, type Recorded } from "../kernels/gpu/choices.ts";
import type { Device } from "../kernels/gpu/device.ts";
import { formatTuning, Tuner } from "../kernels/gpu/tune.ts";
import { cacheFolder } from "../kernels/gpu/tune_cache.ts";
import { UserError } from "../model/errors.ts";
import { exists, writeAll, writeAtomically } from "../model/files.ts";
import { readJson } from "../model/json_fields.ts";
import type { Config } from "./config.ts";
import type { Console } from "./console.ts";
import { KERNELS, SPEEDS } from "./run_folder.ts";

export interface KernelOptions {
  readonly config: Pick<Config, "tune" | "tuneSeconds">;
  /** The kernels of the run to go on with. */
  readonly recorded?: Recorded;
  readonly console: Pick<Console, "line" | "status">;
}

/**
 * Builds what trains with kernels as the settings want them. What is compiled later uses the same, and for calls that
 * weren't among them each op's own best guess: what a run computes then hangs on nothing that changes while it runs.
 *
 * @returns what was built, and its kernels.
 */
export async function withKernels<T>(
  device: Device,
  options: KernelOptions,
  build: () => Promise<T>,
): Promise<{ readonly built: T; readonly kernels: Recorded }> {
  const { built, kernels } = options.recorded !== undefined || options.config.tune === "off"
    ? await buildRecorded(device, options, build)
    : await buildTuned(device, options, build);
  device.chooser = new Choices(kernels);
  return { built, kernels };
}

async function buildRecorded<T>(device: Device, { recorded = {}, console }: KernelOptions, build: () => Promise<T>) {
  const choices = new Choices(recorded);
  device.chooser = choices;
  const built = await build();
  const [first] = choices.missing;
  if (first !== undefined) {
    const of = `${choices.missing.length} of this run's ${Object.keys(recorded).length} kernels`;
    console.line(
      `warning: ${of} are gone (first: that of ${first}): they changed, or this is another adapter; ` +
        "defaults take their place, so what follows may differ in the last bits from an undisturbed run",
    );
  }
  return { built, kernels: choices.used };
}

async function buildTuned<T>(device: Device, { config, console }: KernelOptions, build: () => Promise<T>) {
  const again = config.tune === "full";
  using tuner = new Tuner(device, {
    folder: cacheFolder(),
    again,
    seconds: again ? Infinity : config.tuneSeconds,
    onProgress: (progress) => console.status(formatTuning(progress)),
    note: (line) => console.line(`note: ${line}`),
  });
  device.chooser = tuner;
  const built = await build();
  const summary = tuner.summary();
  if (summary !== undefined) console.line(summary);
  return { built, kernels: tuner.used };
}

/**
 * The kernels a run was begun with; undefined where it has no list.
 *
 * @throws UserError where the list can't be read.
 */
export async function readKernels(run: string): Promise<Recorded | undefined> {
  const file = join(run, KERNELS);
  if (!await exists(file)) return undefined;
  const kernels = await readJson(file);
  const whole = typeof kernels === "object" && kernels !== null && !Array.isArray(kernels) &&
    Object.values(kernels).every((fingerprint) => typeof fingerprint === "string");
  if (!whole) throw new UserError(`Cannot use ${file}: it isn't a list of kernels; remove it to go on with other ones`);
  return kernels as Recorded;
}

/** Writes the kernels a run uses into its folder. */
export async function writeKernels(run: string, kernels: Recorded): Promise<void> {
  await writeJson(join(run, KERNELS), kernels);
}

/**
 * The speeds by which a run's ranks shared updates out; undefined where they never were measured.
 *
 * @throws UserError where they can't be read.
 */
export async function readSpeeds(run: string): Promise<readonly number[] | undefined> {
  const file = join(run, SPEEDS);
  if (!await exists(file)) return undefined;
  const speeds = await readJson(file);
  const whole = Array.isArray(speeds) && speeds.every((speed) => Number.isFinite(speed) && speed > 0);
  if (!whole) throw new UserError(`Cannot use ${file}: it isn't a list of speeds; remove it to measure them anew`);
  return speeds;
}

export async function writeSpeeds(run: string, speeds: readonly number[]): Promise<void> {
  await writeJson(join(run, SPEEDS), speeds);
}

async function writeJson(file: string, value: unknown): Promise<void> {
  const text = JSON.stringify(value, null, 1) + "\n";
  await writeAtomically(file, (file) => writeAll(file, new TextEncoder().encode(text)));
}
