/** Profiles one step of a run: one is timed whole, the next kernel by kernel. Both are steps like all others to the run. */
import type { Console } from "./console.ts";
import type { Learner } from "./learner.ts";

export interface StepProfile {
  before(step: number): Promise<void>;
  /** @returns whether this step was measured, and so took longer than others. */
  after(step: number): Promise<boolean>;
}

/** Takes step `timed`, when shaders are compiled, and the one after it. */
export function profileStep(learner: Learner, console: Console, timed: number): StepProfile {
  let began = 0;
  let milliseconds = 0;
  return {
    async before(step) {
      if (step !== timed && step !== timed + 1) return;
      await learner.report(); // waits for all that was begun before
      if (step === timed) began = performance.now();
      else {
        milliseconds = performance.now() - began;
        await learner.startProfile();
      }
    },
    async after(step) {
      if (step !== timed + 1) return false;
      console.line(await learner.endProfile(milliseconds));
      return true;
    },
  };
}
